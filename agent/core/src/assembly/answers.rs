//! The kernel's routing answers, as long as they hold.

use std::sync::Arc;

use crate::fact::Fact;
use crate::model::{Address, Lookups, PeerAnswers, PeerId, PolicyRule, RouteTable};
use crate::time::{Mono, SECOND};

/// The kernel's routing answers, and the tables that they were given from.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) answers: Fact<Arc<Lookups>>,
    routes: Option<Arc<RouteTable>>,
    rules: Option<Arc<Vec<PolicyRule>>>,
    addresses: Option<Arc<Vec<Address>>>,
    /// When one of those was seen to change last.
    changed: Mono,
}

/// An answer holds no longer than this, even while no table changes: what else
/// it depends on tells nobody of its changes.
const ANSWER_AGE_NS: u64 = 120 * SECOND;

impl Answers {
    pub(super) fn take(&mut self, answers: Vec<(PeerId, PeerAnswers)>, at: Mono) {
        let mut all = self.answers.seen().cloned().unwrap_or_default();
        let known = &mut Arc::make_mut(&mut all).0;
        known.extend(answers.into_iter().map(|(peer, answers)| (peer, Arc::new(answers))));
        self.answers = Fact::Seen { value: all, at };
    }

    /// The answers that hold: none that is older than the tables are.
    pub(super) fn tell(
        &mut self,
        now: Mono,
        routes: &Fact<Arc<RouteTable>>,
        rules: &Fact<Arc<Vec<PolicyRule>>>,
        addresses: &Fact<Arc<Vec<Address>>>,
    ) -> Fact<Arc<Lookups>> {
        let are_the_same = [
            follow(&mut self.routes, routes),
            follow(&mut self.rules, rules),
            follow(&mut self.addresses, addresses),
        ];
        if are_the_same.contains(&false) {
            self.changed = now;
        }
        if let Fact::Seen { value, .. } = &mut self.answers {
            let holds = |at: Mono| at > self.changed && now.since(at) < ANSWER_AGE_NS;
            if !value.0.values().all(|answers| holds(answers.at)) {
                Arc::make_mut(value).0.retain(|_, answers| holds(answers.at));
            }
        }
        self.answers.clone()
    }
}

/// Takes the present collection in the place of an earlier one; whether it is the
/// very same.
fn follow<T>(known: &mut Option<Arc<T>>, present: &Fact<Arc<T>>) -> bool {
    let is_same = match (&*known, present.seen()) {
        (Some(known), Some(present)) => Arc::ptr_eq(known, present),
        (None, None) => true,
        _ => false,
    };
    if !is_same {
        *known = present.seen().cloned();
    }
    is_same
}
