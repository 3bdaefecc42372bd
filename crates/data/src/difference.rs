//! In what two descriptions differ, for messages: the first key with both values, and not all of both.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Most letters of a value that are shown.
const SHOWN: usize = 80;

/// The first key with other values in two descriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The key, with dots in front of those of tables inside.
    pub path: String,
    /// Its value in the first one, as JSON, cut where it is long.
    pub there: String,
    /// Its value in the second one.
    pub now: String,
}

impl Difference {
    /// Key and value in both.
    pub fn both(&self) -> [String; 2] {
        [&self.there, &self.now].map(|value| format!("`{}` = {value}", self.path))
    }
}

/// The first difference in the order of keys; none of equal descriptions.
pub(crate) fn difference(there: &Map<String, Value>, now: &Map<String, Value>) -> Option<Difference> {
    below("", there, now)
}

fn below(prefix: &str, there: &Map<String, Value>, now: &Map<String, Value>) -> Option<Difference> {
    let keys: BTreeSet<&String> = there.keys().chain(now.keys()).collect();
    keys.into_iter().find_map(|key| {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (there.get(key), now.get(key)) {
            (Some(Value::Object(there)), Some(Value::Object(now))) => below(&path, there, now),
            (there, now) if there == now => None,
            (there, now) => Some(Difference { path, there: shown(there), now: shown(now) }),
        }
    })
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".to_owned() };
    let text = value.to_string();
    let cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_key_that_differs_is_named() {
        let of = |there: Value, now: Value| difference(there.as_object().unwrap(), now.as_object().unwrap());
        let base = json!({"b": {"y": 1, "x": "p"}, "c": [1, 2]});
        assert_eq!(of(base.clone(), base.clone()), None);
        let found = of(base.clone(), json!({"b": {"y": 1, "x": "q"}, "c": [1]})).unwrap();
        assert_eq!(found.both(), ["`b.x` = \"p\"", "`b.x` = \"q\""]);
        let found = of(base.clone(), json!({"a": null, "b": 3, "c": [1, 2]})).unwrap();
        assert_eq!(found.both(), ["`a` = nothing", "`a` = null"]);
        let long = json!({"b": "ü".repeat(4000)});
        let found = of(long, base).unwrap();
        assert!(found.there.chars().count() == SHOWN + 1 && found.there.ends_with('…'), "{found:?}");
        assert_eq!(found.now, "{\"x\":\"p\",\"y\":1}");
    }
}
