//! Text in, model out.

use std::collections::BTreeMap;

use overlaywatch_core::model::Module;

/// Modules whose absence breaks an overlay.
pub const OF_INTEREST: [&str; 9] = [
    "br_netfilter",
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_net",
    "ipip",
    "nf_conntrack",
    "vxlan",
    "wireguard",
    "xt_set",
];
/// No name of a system or machine that is worth showing is longer.
const NAME_BYTES: usize = 128;

/// The value of a key of os-release(5): `KEY=value`, in quotes or without, with
/// the shell's backslashes, which names of systems do not have.
#[must_use]
pub fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    let value = value.trim();
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    name(unquoted)
}

/// A name as firmware and files give it: printable, and not too long.
#[must_use]
pub fn name(text: &str) -> Option<String> {
    let clean: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    let mut end = clean.len().min(NAME_BYTES);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean.get(..end).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Which of the modules of interest a kernel has: `builtin` is its
/// modules.builtin, a path on each line; `dep` its modules.dep, a path and a
/// colon on each line (modules.dep(5)). A file may be compressed: .ko.xz.
#[must_use]
pub fn modules(builtin: &str, dep: &str) -> BTreeMap<String, Module> {
    let mut modules: BTreeMap<String, Module> =
        OF_INTEREST.iter().map(|name| ((*name).to_owned(), Module::Absent)).collect();
    let loadable = dep.lines().filter_map(|line| line.split_once(':')).map(|(path, _)| path);
    let found = loadable.map(|path| (path, Module::Loadable));
    for (path, how) in found.chain(builtin.lines().map(|path| (path, Module::BuiltIn))) {
        let file = path.trim().rsplit('/').next().unwrap_or_default();
        let Some((name, _)) = file.split_once(".ko") else { continue };
        // Files write some names with a dash, the kernel all with an underscore.
        if let Some(module) = modules.get_mut(name.replace('-', "_").as_str()) {
            *module = how;
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lose_their_quotes() {
        let text =
            "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nID_LIKE='a'\n";
        let debian = Some("Debian GNU/Linux 12 (bookworm)".to_owned());
        assert_eq!(os_release(text, "PRETTY_NAME"), debian);
        assert_eq!(os_release(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(text, "ID_LIKE").as_deref(), Some("a"));
        assert_eq!(os_release(text, "VERSION"), None);
    }

    #[test]
    fn names_are_bounded_and_printable() {
        assert_eq!(name("  Hetzner\n").as_deref(), Some("Hetzner"));
        assert_eq!(name("\n"), None);
        assert_eq!(name(&"ä".repeat(100)).map(|name| name.len()), Some(NAME_BYTES));
    }

    #[test]
    fn modules_are_told_by_their_files_names() {
        let dep = "kernel/net/ipv4/ipip.ko.xz: kernel/net/ipv4/tunnel4.ko.xz\n\
                   kernel/drivers/net/vxlan/vxlan.ko:\nkernel/x/vxlan_tool.ko:\n";
        let builtin = "kernel/net/bridge/br-netfilter.ko\n";
        let found = modules(builtin, dep);
        assert_eq!(found["ipip"], Module::Loadable);
        assert_eq!(found["vxlan"], Module::Loadable);
        assert_eq!(found["br_netfilter"], Module::BuiltIn);
        assert_eq!(found["ip_set"], Module::Absent);
        assert_eq!(found.len(), OF_INTEREST.len());
    }
}
