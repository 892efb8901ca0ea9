//! How one change becomes a new collection.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Change;
use crate::fact::Fact;
use crate::model::{Route, RouteKey, RouteTable};
use crate::time::Mono;

/// A dump that says what was known already leaves the collection as it is, so
/// that whoever compares by identity sees no change.
pub(super) fn replace<T: PartialEq>(fact: &mut Fact<Arc<T>>, all: T, at: Mono) {
    match fact {
        Fact::Seen { value, at: seen } if **value == all => *seen = at,
        _ => *fact = Fact::Seen { value: Arc::new(all), at },
    }
}

pub(super) fn fold_map<K: Ord + Clone, V: Clone + PartialEq>(
    fact: &mut Fact<Arc<BTreeMap<K, V>>>,
    change: Change<K, V>,
    at: Mono,
    key: impl Fn(&V) -> K,
) {
    match change {
        Change::Replace(all) => {
            let map = all.into_iter().map(|value| (key(&value), value)).collect();
            replace(fact, map, at);
        }
        // A change without a complete picture before it proves nothing.
        Change::Upsert(value) => {
            if let Fact::Seen { value: map, at: seen } = fact {
                let key = key(&value);
                if map.get(&key) != Some(&value) {
                    Arc::make_mut(map).insert(key, value);
                }
                *seen = at;
            }
        }
        Change::Remove(key) => {
            if let Fact::Seen { value: map, at: seen } = fact {
                if map.contains_key(&key) {
                    Arc::make_mut(map).remove(&key);
                }
                *seen = at;
            }
        }
    }
}

pub(super) fn fold_list<T: Ord + Clone>(
    fact: &mut Fact<Arc<Vec<T>>>,
    change: Change<T, T>,
    at: Mono,
) {
    match change {
        Change::Replace(mut all) => {
            all.sort_unstable();
            replace(fact, all, at);
        }
        Change::Upsert(item) => {
            if let Fact::Seen { value: list, at: seen } = fact {
                if let Err(position) = list.binary_search(&item) {
                    Arc::make_mut(list).insert(position, item);
                }
                *seen = at;
            }
        }
        Change::Remove(item) => {
            if let Fact::Seen { value: list, at: seen } = fact {
                if let Ok(position) = list.binary_search(&item) {
                    Arc::make_mut(list).remove(position);
                }
                *seen = at;
            }
        }
    }
}

pub(super) fn fold_routes(
    fact: &mut Fact<Arc<RouteTable>>,
    change: Change<RouteKey, Route>,
    at: Mono,
) {
    match change {
        Change::Replace(all) => {
            let map = all.into_iter().map(|route| (route.key, route)).collect();
            replace(fact, RouteTable(map), at);
        }
        Change::Upsert(route) => {
            if let Fact::Seen { value, at: seen } = fact {
                if value.0.get(&route.key) != Some(&route) {
                    Arc::make_mut(value).0.insert(route.key, route);
                }
                *seen = at;
            }
        }
        Change::Remove(key) => {
            if let Fact::Seen { value, at: seen } = fact {
                if value.0.contains_key(&key) {
                    Arc::make_mut(value).0.remove(&key);
                }
                *seen = at;
            }
        }
    }
}
