//! Another program on our hooks, which counts for itself: a second copy of ours
//! with maps of its own.

use aya::maps::{Array, PerCpuArray, PerCpuHashMap};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use overlaywatch_ebpf::{Kernel, OBJECT, Slots, Traffic, TrafficKey};

use crate::bench::{Namespace, Pins};

pub(crate) struct Foreign {
    ebpf: Ebpf,
    /// Detaches when it goes.
    links: Vec<SchedClassifierLink>,
    _pins: Pins,
}

/// How it is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// By a link, before all others or after.
    TcxFirst,
    TcxLast,
    /// By a filter with this priority.
    Filter(u16),
}

/// The side of the underlay NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    In,
    Out,
}

impl Side {
    const fn of_kernel(self) -> TcAttachType {
        match self {
            Self::In => TcAttachType::Ingress,
            Self::Out => TcAttachType::Egress,
        }
    }
}

impl Foreign {
    /// Loads the programs and attaches them to both sides of eth0.
    pub(crate) fn attach(node: &Namespace, by: By) -> Self {
        let work = move || {
            let pins = Pins::new();
            std::fs::create_dir(pins.path()).unwrap();
            let kernel = Kernel { probe_port: 1, ..Kernel::UNKNOWN };
            let mut ebpf = EbpfLoader::new()
                .btf(None)
                .default_map_pin_directory(pins.path())
                .override_global("KERNEL", &kernel, true)
                .load(OBJECT)
                .unwrap();
            let mut ports: Array<_, [u64; 1024]> =
                Array::try_from(ebpf.map_mut("PORTS").unwrap()).unwrap();
            ports.set(0, [u64::MAX; 1024], 0).unwrap();
            let links = [Side::In, Side::Out].map(|side| attach(&mut ebpf, side, by));
            Self { ebpf, links: links.into(), _pins: pins }
        };
        node.inside(work).join().unwrap()
    }

    /// Packets that it counted on one side.
    pub(crate) fn counted(&self, side: Side) -> u64 {
        let map: PerCpuHashMap<_, TrafficKey, Traffic> =
            PerCpuHashMap::try_from(self.ebpf.map("TRAFFIC").unwrap()).unwrap();
        let direction = match side {
            Side::In => overlaywatch_ebpf::direction::INGRESS,
            Side::Out => overlaywatch_ebpf::direction::EGRESS,
        };
        let slots: PerCpuArray<_, Slots> =
            PerCpuArray::try_from(self.ebpf.map("SLOTS").unwrap()).unwrap();
        let mapped: u64 = map
            .iter()
            .map(Result::unwrap)
            .filter(|(key, _)| key.direction == direction)
            .flat_map(|(_, values)| values.iter().map(|t| t.packets).collect::<Vec<_>>())
            .sum();
        let slotted: u64 = slots
            .iter()
            .map(Result::unwrap)
            .flat_map(|values| values.iter().flat_map(|slots| slots.0).collect::<Vec<_>>())
            .filter(|slot| slot.key.direction == direction)
            .map(|slot| slot.traffic.packets)
            .sum();
        mapped + slotted
    }

    /// The number of its program on one side.
    pub(crate) fn id(&self, side: Side) -> u32 {
        let program = self.ebpf.program(name(side)).unwrap();
        let program: &SchedClassifier = program.try_into().unwrap();
        program.info().unwrap().id()
    }

    /// Detaches it in its namespace.
    pub(crate) fn detach(self, node: &Namespace) {
        node.inside(move || drop(self)).join().unwrap();
    }

    /// Filters stay behind: the namespace takes them along.
    pub(crate) fn leave(mut self) {
        self.links.drain(..).for_each(std::mem::forget);
    }
}

const fn name(side: Side) -> &'static str {
    match side {
        Side::In => "ow_underlay_in",
        Side::Out => "ow_underlay_out",
    }
}

fn attach(ebpf: &mut Ebpf, side: Side, by: By) -> SchedClassifierLink {
    let program: &mut SchedClassifier = ebpf.program_mut(name(side)).unwrap().try_into().unwrap();
    program.load().unwrap();
    let options = match by {
        By::TcxFirst => TcAttachOptions::TcxOrder(LinkOrder::first()),
        By::TcxLast => TcAttachOptions::TcxOrder(LinkOrder::last()),
        By::Filter(priority) => {
            // It may be there already.
            let _ = qdisc_add_clsact("eth0");
            TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() })
        }
    };
    let link = program.attach_with_options("eth0", side.of_kernel(), options).unwrap();
    program.take_link(link).unwrap()
}

/// Numbers and names of tcx programs of a device, in the order in which they run.
pub(crate) fn tcx(node: &Namespace, device: &str, side: Side) -> Vec<(u32, String)> {
    let device = device.to_owned();
    let ask = move || {
        let (_, programs) = SchedClassifier::query_tcx(&device, side.of_kernel()).unwrap();
        let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
        programs.iter().map(|program| (program.id(), name(program.name_as_str()))).collect()
    };
    node.inside(ask).join().unwrap()
}

/// What tc(8) shows of the filters of a device, both sides.
pub(crate) fn filters(node: &Namespace, device: &str) -> String {
    node.try_sh(&format!("tc filter show dev {device} ingress; tc filter show dev {device} egress"))
}
