//! Programs and libraries of hosts and containers, and what /proc says of processes.
#![no_main]

use overlaywatch::source::tools::translate::{self, Tool};
use overlaywatch_core::model::ToolVersion;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for tool in [Tool::Ipset, Tool::Iptables, Tool::Nft] {
        if let Some(version) = translate::version(tool, bytes) {
            let text = version.to_string();
            assert_eq!(text.parse::<ToolVersion>(), Ok(version));
            // It is in the file, word for word.
            assert!(bytes.split(|&byte| byte == 0).any(|part| part == text.as_bytes()));
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = translate::namespace(&text);
    let _ = translate::file_system(&text, 1);
    let _ = translate::served(&text).count();
    let _ = translate::mount_of_descriptor(&text);
    if let Some(folder) = translate::k3s_folder(&text) {
        assert!(text.starts_with(folder) && folder.ends_with("/bin"));
    }
    let _ = translate::has_capability(&text, 19);
    if let Some((name, _)) = translate::process(&text) {
        assert!(text.contains(name));
    }
});
