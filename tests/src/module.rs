//! Modules of the running kernel, found without loading any.

use std::fs;

/// Whether a module is loaded, can be, or is built in.
#[must_use]
pub fn is_there(module: &str) -> bool {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = text("/proc/sys/kernel/osrelease");
    let of_kernel = |file: &str| text(&format!("/lib/modules/{}/{file}", release.trim()));
    let (loadable, builtin) = (of_kernel("modules.dep"), of_kernel("modules.builtin"));
    is_named(module, &text("/proc/modules"), &loadable, &builtin)
}

/// Whether any of these lists has it: of loaded modules (proc_modules(5)), of
/// loadable ones (modules.dep(5)), of built-in ones.
fn is_named(module: &str, loaded: &str, loadable: &str, builtin: &str) -> bool {
    let (name, file) = (format!("{module} "), format!("{module}.ko"));
    let is_file = |line: &str| {
        let path = line.split(':').next().unwrap_or_default();
        path.rsplit('/').next().is_some_and(|last| last.starts_with(&file))
    };
    loaded.lines().any(|line| line.starts_with(&name))
        || loadable.lines().chain(builtin.lines()).any(is_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_known_by_any_list() {
        let named = |loaded, loadable, builtin| is_named("ipip", loaded, loadable, builtin);
        assert!(named("tunnel4 16384 1 ipip, Live 0x0\nipip 16384 0 - Live 0x0\n", "", ""));
        assert!(named("", "kernel/net/ipv4/ipip.ko.xz: kernel/net/ipv4/tunnel4.ko.xz\n", ""));
        assert!(named("", "", "kernel/net/ipv4/ipip.ko\n"));
        let others = "kernel/net/ipv4/fou.ko: kernel/net/ipv4/ipip.ko\n";
        assert!(!named("ip_tunnel 16384 0 - Live 0x0\n", others, ""));
    }
}
