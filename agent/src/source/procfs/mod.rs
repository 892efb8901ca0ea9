//! The host as /proc tells it, read once a tick; tables of neighbours, which it
//! shows in the first network namespace alone, are asked for elsewhere.

pub mod translate;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use netlink_packet_core::DecodeError;
use netlink_sys::protocols::NETLINK_ROUTE;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{DeviceSettings, Host, NeighbourTable};
use tokio::sync::mpsc::Sender;

use super::ask::{Question, ask};
use super::meter::{Closed, disabled, metered, pause};
use super::{Options, SourceError, wire};

/// What people change by hand, and what costs a file per device, is read
/// every so many ticks only.
const SETTINGS_EVERY: u32 = 10;

/// Where to read: /proc, unless a test has its own.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Kernel settings. Those under `net` are of the network namespace of
    /// whoever opens them.
    pub sys: PathBuf,
    /// Counters of a network namespace. /proc/net would be the namespace of
    /// the process's first thread, whichever thread asks.
    pub net: PathBuf,
    /// What is of the whole machine.
    pub proc: PathBuf,
    /// The kernel is asked over netlink for what /proc has in the first network
    /// namespace alone.
    pub asks: bool,
}

impl Default for Roots {
    fn default() -> Self {
        let net = "/proc/thread-self/net".into();
        Self { sys: "/proc/sys".into(), net, proc: "/proc".into(), asks: true }
    }
}

impl Roots {
    /// The same files below another directory, all of one namespace.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        let (sys, net) = (root.join("sys"), root.join("net"));
        Self { sys, net, proc: root.to_owned(), asks: false }
    }
}

/// Reads /proc every `options.poll` until nobody listens any more.
///
/// # Errors
/// [`Closed`] when the receiving end is gone; if disabled it returns at once.
pub fn run(options: &Options, roots: &Roots, updates: &Sender<Update>) -> Result<(), Closed> {
    if !options.enabled.contains(&SourceId::Procfs) {
        return disabled(updates, SourceId::Procfs);
    }
    let mut reader = Reader::new(roots.clone());
    loop {
        metered(updates, SourceId::Procfs, || {
            Ok::<_, SourceError>(Update::Host(Box::new(reader.read()?)))
        })?;
        pause(options.poll, updates)?;
    }
}

/// Reads the files; the slow ones it remembers for a while.
#[derive(Debug)]
pub struct Reader {
    roots: Roots,
    text: String,
    settings: Option<Settings>,
    age: u32,
    forwarding: Option<bool>,
}

#[derive(Clone, Debug)]
struct Settings {
    kernel_release: String,
    boot_id: String,
    devices: BTreeMap<String, DeviceSettings>,
    modules: Option<Vec<String>>,
    neighbour_tables: Vec<NeighbourTable>,
}

impl Reader {
    /// Nothing read yet.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self { roots, text: String::new(), settings: None, age: 0, forwarding: None }
    }

    /// One reading.
    ///
    /// # Errors
    /// When a file that every kernel has cannot be read.
    pub fn read(&mut self) -> Result<Host, SourceError> {
        let forwarding = self.switch(&self.roots.sys.join("net/ipv4/ip_forward"))?;
        if std::mem::replace(&mut self.forwarding, forwarding) != forwarding {
            // The host's switch changes those of all devices.
            self.age = SETTINGS_EVERY;
        }
        let settings = match self.settings.take() {
            Some(settings) if self.age < SETTINGS_EVERY => settings,
            _ => {
                self.age = 0;
                self.read_settings()?
            }
        };
        self.age += 1;
        let (sys, net) = (self.roots.sys.clone(), self.roots.net.clone());
        let mut counters = translate::counters(self.required(&net.join("snmp"))?);
        let extended = translate::counters(self.required(&net.join("netstat"))?);
        counters.in_no_routes = extended.in_no_routes;
        counters.ip_reverse_path_filter = extended.ip_reverse_path_filter;
        let (softnet_dropped, softnet_squeezed) =
            translate::softnet(self.required(&net.join("softnet_stat"))?);
        let host = Host {
            kernel_release: settings.kernel_release.clone(),
            boot_id: settings.boot_id.clone(),
            ipv4_forwarding: forwarding,
            ipv6_forwarding: self.switch(&sys.join("net/ipv6/conf/all/forwarding"))?,
            rp_filter_all: self.number(&sys.join("net/ipv4/conf/all/rp_filter"))?,
            devices: settings.devices.clone(),
            counters,
            softnet_dropped,
            softnet_squeezed,
            modules: settings.modules.clone(),
            neighbour_tables: settings.neighbour_tables.clone(),
        };
        self.settings = Some(settings);
        Ok(host)
    }

    fn read_settings(&mut self) -> Result<Settings, SourceError> {
        let kernel = self.roots.sys.join("kernel");
        Ok(Settings {
            kernel_release: self.required(&kernel.join("osrelease"))?.trim().to_owned(),
            boot_id: self.required(&kernel.join("random/boot_id"))?.trim().to_owned(),
            devices: self.read_devices()?,
            modules: self.optional(&self.roots.proc.join("modules"))?.map(translate::modules),
            neighbour_tables: self.read_neighbour_tables()?,
        })
    }

    fn read_neighbour_tables(&mut self) -> Result<Vec<NeighbourTable>, SourceError> {
        let mut tables = Vec::new();
        for (v6, file, family) in [(false, "arp_cache", "ipv4"), (true, "ndisc_cache", "ipv6")] {
            let counted = self.optional(&self.roots.net.join("stat").join(file))?;
            let Some((entries, refused)) = counted.and_then(translate::neighbours) else {
                continue;
            };
            let threshold = Path::new("net").join(family).join("neigh/default/gc_thresh3");
            let limit = self.optional(&self.roots.sys.join(threshold))?;
            let limit = limit.and_then(|text| text.trim().parse().ok());
            tables.push(NeighbourTable { v6, entries, refused, limit });
        }
        if tables.is_empty() && self.roots.asks {
            tables = ask_for_neighbour_tables()?;
        }
        Ok(tables)
    }

    fn read_devices(&mut self) -> Result<BTreeMap<String, DeviceSettings>, SourceError> {
        let conf = self.roots.sys.join("net/ipv4/conf");
        let failed = |error| SourceError::io(format!("reading {}", conf.display()), error);
        let mut devices = BTreeMap::new();
        for entry in fs::read_dir(&conf).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Neither is a device: one switches all, the other those to come.
            if name == "all" || name == "default" {
                continue;
            }
            let directory = entry.path();
            let settings = DeviceSettings {
                forwarding: self.switch(&directory.join("forwarding"))?,
                rp_filter: self.number(&directory.join("rp_filter"))?,
            };
            // A device that went while its directory was read says nothing.
            if settings != DeviceSettings::default() {
                devices.insert(name, settings);
            }
        }
        Ok(devices)
    }

    fn switch(&mut self, path: &Path) -> Result<Option<bool>, SourceError> {
        Ok(self.number(path)?.map(|number| number != 0))
    }

    fn number(&mut self, path: &Path) -> Result<Option<u8>, SourceError> {
        let Some(text) = self.optional(path)? else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| SourceError::Malformed {
            what: format!("reading {}", path.display()),
            reason: format!("`{}` is not a small number", text.trim().escape_debug()),
        })
    }

    fn required(&mut self, path: &Path) -> Result<&str, SourceError> {
        load(path, &mut self.text)
            .map_err(|error| SourceError::io(format!("reading {}", path.display()), error))?;
        Ok(&self.text)
    }

    /// None where there is no such file: a kernel without IPv6 or modules.
    fn optional(&mut self, path: &Path) -> Result<Option<&str>, SourceError> {
        match load(path, &mut self.text) {
            Ok(()) => Ok(Some(&self.text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SourceError::io(format!("reading {}", path.display()), error)),
        }
    }
}

/// The tables of neighbours from within another network namespace than the first.
fn ask_for_neighbour_tables() -> Result<Vec<NeighbourTable>, SourceError> {
    let question = Question {
        what: "dumping tables of neighbours",
        protocol: NETLINK_ROUTE,
        kind: libc::RTM_GETNEIGHTBL,
        is_dump: true,
        // struct ndtmsg: of any family.
        body: &[0; 4],
    };
    let mut tables = Vec::new();
    ask(question, &mut wire::buffer(), |message| {
        tables.extend(translate::neighbour_table(message.payload)?);
        Ok::<_, DecodeError>(())
    })?;
    Ok(tables)
}

/// Reads a whole file into a buffer that keeps its room.
fn load(path: &Path, text: &mut String) -> io::Result<()> {
    text.clear();
    fs::File::open(path)?.read_to_string(text).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, remove_file, write};
    use std::thread;
    use std::time::Duration;

    use overlaywatch_core::fact::Gap;
    use tokio::sync::mpsc::channel;

    use super::*;

    /// A /proc with what every kernel has, and one device.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("sys/kernel/osrelease", "6.1.0-test\n"),
            ("sys/kernel/random/boot_id", "b00t\n"),
            ("sys/net/ipv4/ip_forward", "1\n"),
            ("sys/net/ipv4/conf/all/rp_filter", "2\n"),
            ("sys/net/ipv4/conf/default/rp_filter", "0\n"),
            ("sys/net/ipv4/conf/eth0/rp_filter", "1\n"),
            ("sys/net/ipv4/conf/eth0/forwarding", "0\n"),
            ("net/snmp", "Ip: OutNoRoutes\nIp: 5\n"),
            ("net/netstat", "IpExt: InNoRoutes\nIpExt: 6\n"),
            ("net/softnet_stat", "00000000 00000001 00000002\n"),
            ("modules", "vxlan 1 0 - Live 0x0\n"),
            ("net/stat/arp_cache", "entries table_fulls\n00000010 00000003\n"),
            ("sys/net/ipv4/neigh/default/gc_thresh3", "1024\n"),
        ] {
            let path = root.path().join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn every_field_comes_from_its_file() {
        let root = machine();
        let host = Reader::new(Roots::at(root.path())).read().unwrap();
        let device = DeviceSettings { forwarding: Some(false), rp_filter: Some(1) };
        let expected = Host {
            kernel_release: "6.1.0-test".to_owned(),
            boot_id: "b00t".to_owned(),
            ipv4_forwarding: Some(true),
            // This machine has no IPv6.
            ipv6_forwarding: None,
            rp_filter_all: Some(2),
            devices: [("eth0".to_owned(), device)].into(),
            softnet_dropped: 1,
            softnet_squeezed: 2,
            modules: Some(vec!["vxlan".to_owned()]),
            neighbour_tables: vec![NeighbourTable {
                v6: false,
                entries: 16,
                refused: 3,
                limit: Some(1024),
            }],
            counters: overlaywatch_core::model::IpCounters {
                out_no_routes: 5,
                in_no_routes: 6,
                ..Default::default()
            },
        };
        assert_eq!(host, expected);
    }

    #[test]
    fn a_kernel_without_modules_is_told_from_one_with_none_loaded() {
        let root = machine();
        remove_file(root.path().join("modules")).unwrap();
        let host = Reader::new(Roots::at(root.path())).read().unwrap();
        assert_eq!(host.modules, None);
    }

    #[test]
    fn switches_are_read_each_time_and_device_settings_within_ten() {
        let root = machine();
        let mut reader = Reader::new(Roots::at(root.path()));
        reader.read().unwrap();
        write(root.path().join("sys/net/ipv4/conf/all/rp_filter"), "1\n").unwrap();
        write(root.path().join("sys/net/ipv4/conf/eth0/rp_filter"), "2\n").unwrap();
        let next = reader.read().unwrap();
        assert_eq!(next.rp_filter_all, Some(1));
        assert_eq!(next.devices["eth0"].rp_filter, Some(1));
        let last = (2..=SETTINGS_EVERY).map(|_| reader.read().unwrap()).last().unwrap();
        assert_eq!(last.devices["eth0"].rp_filter, Some(2));
    }

    #[test]
    fn the_hosts_switch_takes_the_devices_along() {
        let root = machine();
        let mut reader = Reader::new(Roots::at(root.path()));
        reader.read().unwrap();
        write(root.path().join("sys/net/ipv4/ip_forward"), "0\n").unwrap();
        write(root.path().join("sys/net/ipv4/conf/eth0/forwarding"), "1\n").unwrap();
        assert_eq!(reader.read().unwrap().devices["eth0"].forwarding, Some(true));
    }

    #[test]
    fn a_number_that_is_none_is_named_with_its_file() {
        let root = machine();
        write(root.path().join("sys/net/ipv4/ip_forward"), "yes\n").unwrap();
        let error = Reader::new(Roots::at(root.path())).read().unwrap_err();
        assert!(error.to_string().contains("ip_forward: `yes` is not"), "{error}");
        assert_eq!(error.gap(), Gap::Failed);
    }

    #[test]
    fn a_reading_that_fails_is_a_gap_and_the_next_may_succeed() {
        let root = machine();
        let snmp = root.path().join("net/snmp");
        let kept = fs::read(&snmp).unwrap();
        remove_file(&snmp).unwrap();
        let (sender, mut updates) = channel(1);
        let roots = Roots::at(root.path());
        let options = Options { poll: Duration::from_millis(1), ..Options::default() };
        let thread = thread::spawn(move || run(&options, &roots, &sender));
        let Some(Update::Source(report)) = updates.blocking_recv() else { panic!("no report") };
        assert_eq!(report.gap, Some(Gap::Unsupported));
        assert!(report.detail.contains("net/snmp: No such file"), "{}", report.detail);
        // Under another name first: half a file is not what is tested here.
        let whole = root.path().join("net/whole");
        write(&whole, kept).unwrap();
        fs::rename(whole, &snmp).unwrap();
        let host = loop {
            if let Some(Update::Host(host)) = updates.blocking_recv() {
                break host;
            }
        };
        assert_eq!(host.counters.out_no_routes, 5);
        drop(updates);
        assert_eq!(thread.join().unwrap(), Err(Closed));
    }
}
