//! Recordings: a snapshot as a file. A bug report is a recording, and a
//! recording is a test.

/// JSON has only text for keys; maps with structured keys are written as
/// lists of pairs.
pub(crate) mod map_as_pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// The same for a map inside a fact.
pub(crate) mod as_pairs {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::fact::Fact;

    pub(crate) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        fact: &Fact<Arc<BTreeMap<K, V>>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let fact: Fact<Vec<(&K, &V)>> = match fact {
            Fact::Seen { value, at } => Fact::Seen { value: value.iter().collect(), at: *at },
            Fact::Absent { at } => Fact::Absent { at: *at },
            Fact::Missing(gap) => Fact::Missing(*gap),
        };
        fact.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, K, V, D>(
        deserializer: D,
    ) -> Result<Fact<Arc<BTreeMap<K, V>>>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(match Fact::<Vec<(K, V)>>::deserialize(deserializer)? {
            Fact::Seen { value, at } => {
                Fact::Seen { value: Arc::new(value.into_iter().collect()), at }
            }
            Fact::Absent { at } => Fact::Absent { at },
            Fact::Missing(gap) => Fact::Missing(gap),
        })
    }
}
