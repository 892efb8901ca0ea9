//! NFT_MSG_NEWTABLE, _NEWCHAIN, _NEWRULE and _NEWGEN; a rule is summed up as well.
#![no_main]

use overlaywatch::source::nftables::translate;
use overlaywatch_core::model::MOST_RULES;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    let _ = translate::generation(payload);
    let _ = translate::table_of(payload);
    let mut summary = translate::Summary::default();
    if let Ok(Some(table)) = translate::table(payload) {
        summary.table(&table);
    }
    if let Ok(Some(chain)) = translate::chain(payload) {
        summary.chain(&chain);
    }
    if let Ok(Some(rule)) = translate::rule(payload) {
        let (family, name, handle) = (rule.family, rule.table.clone(), rule.handle);
        summary.table(&translate::Table { family, name, handle, owner: None });
        summary.rule(rule.clone());
        summary.rule(rule);
    }
    for table in summary.finish() {
        assert!(table.blockers.len() <= MOST_RULES && table.rules <= 2);
    }
});
