//! A ruleset summed up while it is read: what of it can decide a verdict.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use overlaywatch_core::model::{
    BaseChain, Blocker, ChainHook, Controller, Family, Flood, Illegible, MOST_ASIDE,
    MOST_BASE_CHAINS, MOST_ENTRIES, MOST_FLOODS, MOST_ILLEGIBLE, MOST_RULES, MOST_TABLES, Matches,
    NftTable, Programmed, REPEATED, RuleAt, Untracking,
};

use super::{Chain, Rule, Table, Verdict};

/// Rules that drop of which the likeliest are chosen in the end.
const MOST_CANDIDATES: usize = 16 * MOST_RULES;
/// Chains from which one chain is jumped to that are remembered.
const MOST_LEADS: usize = 32;
/// Jumps that are followed upwards from one rule.
const MOST_STEPS: usize = 256;

/// What is being read.
#[derive(Debug, Default)]
pub struct Summary {
    tables: BTreeMap<(Family, String), Draft>,
}

/// One table as far as it has been read.
#[derive(Debug)]
struct Draft {
    table: NftTable,
    /// From where each chain is jumped to.
    leads: HashMap<String, Lead>,
    programmed: BTreeMap<Controller, Programmed>,
    /// The chain whose rules are coming.
    current: String,
    owner: Option<Controller>,
    anchor: bool,
    /// It is a base chain.
    is_base: bool,
    /// And one that iptables does not have.
    is_foreign: bool,
    rules: u32,
    /// How often each rule of it is there, and the latest one's handle.
    times: HashMap<u64, (u32, u64)>,
}

/// From where a chain is jumped to.
#[derive(Debug, Default)]
struct Lead {
    from: Vec<String>,
    jumps: u32,
    /// The conditions of the first jump.
    matches: Matches,
    /// Chains from which every packet, at least of one family, that comes to the
    /// jump takes it.
    always: Vec<(String, Option<bool>)>,
}

impl Summary {
    /// Takes a table.
    pub fn table(&mut self, table: &Table<'_>) {
        if self.tables.len() >= MOST_TABLES {
            return;
        }
        let empty = NftTable {
            family: table.family,
            name: table.name.to_string(),
            handle: table.handle,
            owner: table.owner,
            chains: 0,
            rules: 0,
            base: Vec::new(),
            programmed: Vec::new(),
            entries: Vec::new(),
            blockers: Vec::new(),
            silencers: Vec::new(),
            barriers: Vec::new(),
            untracking: Vec::new(),
            illegible: Vec::new(),
            floods: Vec::new(),
        };
        self.tables.insert((table.family, table.name.to_string()), Draft::of(empty));
    }

    fn draft(&mut self, family: Family, table: &str) -> Option<&mut Draft> {
        self.tables.get_mut(&(family, table.to_owned()))
    }

    /// Takes a chain, of a table that was taken.
    pub fn chain(&mut self, chain: &Chain<'_>) {
        let Some(draft) = self.draft(chain.family, &chain.table) else { return };
        draft.table.chains = draft.table.chains.saturating_add(1);
        if let Some(by) = draft.owner_of(&chain.name) {
            let programmed = draft.programmed(by);
            programmed.chains = programmed.chains.saturating_add(1);
        }
        if let Some(base) = &chain.base
            && draft.table.base.len() < MOST_BASE_CHAINS
        {
            draft.table.base.push(BaseChain {
                name: chain.name.to_string(),
                handle: chain.handle,
                kind: base.kind.to_owned(),
                hook: base.hook,
                priority: base.priority,
                drops: base.drops,
                rules: 0,
            });
        }
    }

    /// Takes a rule, of a chain that was taken. A chain's rules come one after
    /// the other.
    pub fn rule(&mut self, rule: Rule<'_>) {
        if let Some(draft) = self.draft(rule.family, &rule.table) {
            draft.rule(rule);
        }
    }

    /// What was read, in order of family and name.
    #[must_use]
    pub fn finish(self) -> Vec<NftTable> {
        self.tables.into_values().map(Draft::finish).collect()
    }
}

impl Draft {
    fn of(table: NftTable) -> Self {
        Self {
            table,
            leads: HashMap::new(),
            programmed: BTreeMap::new(),
            current: String::new(),
            owner: None,
            anchor: false,
            is_base: false,
            is_foreign: false,
            rules: 0,
            times: HashMap::new(),
        }
    }

    /// Who programs a chain of this table.
    fn owner_of(&self, chain: &str) -> Option<Controller> {
        Controller::of_table(self.table.family, &self.table.name)
            .or_else(|| Controller::of_chain(chain))
    }

    fn programmed(&mut self, by: Controller) -> &mut Programmed {
        let none = Programmed { by, chains: 0, rules: 0, anchored: 0, denials: 0 };
        self.programmed.entry(by).or_insert(none)
    }

    fn rule(&mut self, rule: Rule<'_>) {
        if rule.chain != self.current {
            self.end_chain();
            self.current.clear();
            self.current.push_str(&rule.chain);
            self.owner = self.owner_of(&rule.chain);
            self.anchor = Controller::is_anchor(&rule.chain);
            let base = self.table.base.iter().find(|base| base.name == rule.chain);
            self.is_base = base.is_some();
            self.is_foreign = base.is_some_and(|base| !base.is_of_iptables(&self.table.name));
        }
        self.table.rules = self.table.rules.saturating_add(1);
        self.rules = self.rules.saturating_add(1);
        let (times, last) = self.times.entry(rule.digest).or_default();
        (*times, *last) = (times.saturating_add(1), rule.handle);
        if let Some(by) = self.owner {
            let anchored = u32::from(self.anchor);
            let denials = u32::from(matches!(rule.verdict, Verdict::Drop | Verdict::Reject));
            let programmed = self.programmed(by);
            programmed.rules = programmed.rules.saturating_add(1);
            programmed.anchored = programmed.anchored.saturating_add(anchored);
            programmed.denials = programmed.denials.saturating_add(denials);
        }
        let at = || RuleAt { chain: rule.chain.to_string(), handle: rule.handle };
        let denying = || Blocker {
            at: at(),
            rejects: rule.verdict == Verdict::Reject,
            hooks: Vec::new(),
            matches: rule.matches.clone(),
            packets: rule.packets,
            growth: None,
        };
        // The chain itself says who reads it.
        if let Some((readers, expression)) = rule.illegible.filter(|_| !self.is_foreign) {
            let expression = expression.to_owned();
            keep(&mut self.table.illegible, Illegible { at: at(), expression, readers });
        }
        if rule.untracks && self.table.untracking.len() < MOST_CANDIDATES {
            let matches = rule.matches.clone();
            self.table.untracking.push(Untracking { at: at(), hooks: Vec::new(), matches });
        }
        let denies = matches!(rule.verdict, Verdict::Drop | Verdict::Reject);
        if denies
            && rule.matches.are_too_big_errors()
            && self.table.silencers.len() < MOST_CANDIDATES
        {
            self.table.silencers.push(denying());
        }
        if denies
            && rule.matches.are_none()
            && self.owner.is_none()
            && self.table.barriers.len() < MOST_CANDIDATES
        {
            self.table.barriers.push(denying());
        }
        match rule.verdict {
            Verdict::Jump(to) => {
                if self.is_base
                    && Controller::of_chain(&to) == Some(Controller::KubeRouter)
                    && self.table.entries.len() < MOST_ENTRIES
                {
                    self.table.entries.push(at());
                }
                let lead = self.leads.entry(to.into_owned()).or_default();
                if rule.matches.are_none() && lead.always.len() < MOST_LEADS {
                    lead.always.push((rule.chain.to_string(), rule.matches.v6));
                }
                if lead.jumps == 0 {
                    lead.matches = rule.matches;
                }
                lead.jumps = lead.jumps.saturating_add(1);
                let known = lead.from.last().is_some_and(|last| *last == rule.chain);
                if !known && lead.from.len() < MOST_LEADS {
                    lead.from.push(rule.chain.into_owned());
                }
            }
            Verdict::Drop | Verdict::Reject if rule.matches.may_be_outer() => {
                self.table.blockers.push(denying());
                if self.table.blockers.len() >= 2 * MOST_CANDIDATES {
                    self.table.blockers.sort_by_key(|blocker| blocker.matches.rank());
                    self.table.blockers.truncate(MOST_CANDIDATES);
                }
            }
            _ => {}
        }
    }

    fn end_chain(&mut self) {
        let rules = std::mem::take(&mut self.rules);
        let worst = self.times.values().max_by_key(|(times, _)| *times).copied();
        self.times.clear();
        if let Some((times, handle)) = worst.filter(|(times, _)| *times >= REPEATED) {
            let at = RuleAt { chain: self.current.clone(), handle };
            self.table.floods.push(Flood { at, times, rules });
            if self.table.floods.len() > MOST_FLOODS {
                self.table.floods.sort_by_key(|flood| std::cmp::Reverse(flood.times));
                self.table.floods.truncate(MOST_FLOODS);
            }
        }
        if let Some(base) = self.table.base.iter_mut().find(|base| base.name == self.current) {
            base.rules = base.rules.saturating_add(rules);
        }
    }

    fn finish(mut self) -> NftTable {
        self.end_chain();
        self.table.programmed = self.programmed.values().copied().collect();
        let blockers = std::mem::take(&mut self.table.blockers);
        let mut blockers: Vec<_> =
            blockers.into_iter().filter_map(|blocker| self.reached(blocker)).collect();
        blockers.sort_by_key(|blocker| blocker.matches.rank());
        blockers.truncate(MOST_RULES);
        self.table.blockers = blockers;
        let silencers = std::mem::take(&mut self.table.silencers);
        let silencers = silencers.into_iter().filter_map(|mut rule| {
            rule.hooks = self.led(&rule.at.chain, &mut rule.matches);
            (!rule.hooks.is_empty() && rule.matches.are_too_big_errors()).then_some(rule)
        });
        self.table.silencers = silencers.take(MOST_ASIDE).collect();
        let barriers = std::mem::take(&mut self.table.barriers);
        let barriers = barriers.into_iter().filter_map(|mut rule| {
            rule.matches.v6 = self.bars(&rule.at.chain, rule.matches.v6)?;
            rule.hooks = vec![ChainHook::Forward];
            Some(rule)
        });
        self.table.barriers = barriers.take(MOST_ASIDE).collect();
        let untracking = std::mem::take(&mut self.table.untracking);
        let untracking = untracking.into_iter().filter_map(|mut rule| {
            rule.hooks = self.led(&rule.at.chain, &mut rule.matches);
            (!rule.hooks.is_empty()).then_some(rule)
        });
        self.table.untracking = untracking.take(MOST_ASIDE).collect();
        self.table.floods.sort_by_key(|flood| std::cmp::Reverse(flood.times));
        self.table
    }

    /// The rule with what leads to it; none where packets of tunnels do not come.
    fn reached(&self, mut blocker: Blocker) -> Option<Blocker> {
        blocker.hooks = self.led(&blocker.at.chain, &mut blocker.matches);
        // Outer packets begin or end here: they are not forwarded.
        blocker.hooks.retain(|hook| *hook != ChainHook::Forward);
        (!blocker.hooks.is_empty() && blocker.matches.may_be_outer()).then_some(blocker)
    }

    /// Whether what is forwarded comes to a chain whatever it is, and of which family
    /// alone, if of one, where what is left to the chain is of `v6`.
    fn bars(&self, to: &str, v6: Option<bool>) -> Option<Option<bool>> {
        let mut open = vec![(to, v6)];
        let mut visited: BTreeSet<_> = open.iter().copied().collect();
        while let Some((chain, v6)) = open.pop() {
            let mut bases = self.table.base.iter();
            if bases.any(|base| base.name == chain && base.hook == Some(ChainHook::Forward)) {
                return Some(v6);
            }
            for (from, of) in self.leads.get(chain).into_iter().flat_map(|lead| &lead.always) {
                let both = match (v6, *of) {
                    (Some(one), Some(other)) if one != other => continue,
                    (one, other) => one.or(other),
                };
                if visited.len() < MOST_STEPS && visited.insert((from, both)) {
                    open.push((from, both));
                }
            }
        }
        None
    }

    /// From which hooks packets come to a chain; a rule's conditions are joined with
    /// those of the one jump that leads there.
    fn led(&self, to: &str, matches: &mut Matches) -> Vec<ChainHook> {
        let mut chain = to;
        for _ in 0..MOST_STEPS {
            let Some(lead) = self.leads.get(chain).filter(|lead| lead.jumps == 1) else { break };
            *matches = lead.matches.and(matches);
            let Some(from) = lead.from.first() else { break };
            chain = from;
        }
        let mut open = vec![to];
        let mut visited: BTreeSet<&str> = open.iter().copied().collect();
        let mut hooks = BTreeSet::new();
        while let Some(chain) = open.pop() {
            let base = self.table.base.iter().find(|base| base.name == chain);
            hooks.extend(base.and_then(|base| base.hook));
            for from in self.leads.get(chain).into_iter().flat_map(|lead| &lead.from) {
                if visited.len() < MOST_STEPS && visited.insert(from) {
                    open.push(from);
                }
            }
        }
        hooks.into_iter().collect()
    }
}

/// Adds a rule to a list that begins with the worst, unless there are enough of
/// its kind.
fn keep(list: &mut Vec<Illegible>, one: Illegible) {
    let alike = list.iter().filter(|other| other.readers == one.readers).count();
    if alike < MOST_ILLEGIBLE {
        let place = list.partition_point(|other| other.readers >= one.readers);
        list.insert(place, one);
    }
}
