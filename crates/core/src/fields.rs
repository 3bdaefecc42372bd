//! Reading of published JSON configurations, field by field.
//!
//! A configuration comes from elsewhere: it may be damaged, hostile, or of a network that is not built here. [`Fields`]
//! reads each field with its default, keeps numbers within bounds that no published model comes near, and collects
//! everything that is wrong, so that one error names every field at fault.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

/// Largest extent or count; sums and products of a few of them stay far from overflow.
pub const MOST: usize = 1 << 20;
/// Most layers of a stack; a list of their tensors stays small.
pub const MOST_LAYERS: usize = 256;
/// Most levels of a network.
pub const MOST_LEVELS: usize = 8;

/// Characters of a value that a message shows.
const SHOWN: usize = 80;
/// Unknown fields that a message names.
const NAMED: usize = 8;
/// Similarity (1 is equal) from which a known name is suggested for an unknown one.
const SIMILAR: f64 = 0.7;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// The field with the objects around it (`text_config.hidden_size`); empty if no single field is at fault.
    pub field: String,
    /// Its value as JSON, cut short; none where it is not the value alone that is wrong.
    pub value: Option<String>,
    /// What is wrong, and what the field takes.
    pub problem: String,
    /// True if the reader does not know the field.
    pub unknown: bool,
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.field, &self.value) {
            (field, _) if field.is_empty() => f.write_str(&self.problem),
            (field, Some(value)) => write!(f, "`{field}` = {value}: {}", self.problem),
            (field, None) => write!(f, "`{field}`: {}", self.problem),
        }
    }
}

/// A configuration that cannot be used, with everything that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} configuration: {}", .problems.iter().map(FieldProblem::to_string).collect::<Vec<_>>().join("; "))]
pub struct FieldsError {
    /// The class or model that the configuration is for.
    pub what: String,
    /// One for each field at fault; at least one.
    pub problems: Vec<FieldProblem>,
}

impl FieldsError {
    /// Whether a field is among those at fault, by its name with the objects around it.
    pub fn names(&self, field: &str) -> bool {
        self.problems.iter().any(|problem| problem.field == field)
    }

    /// The fields at fault that the reader does not know, by their names.
    pub fn unknown(&self) -> Vec<&str> {
        self.problems.iter().filter(|problem| problem.unknown).map(|problem| problem.field.as_str()).collect()
    }
}

/// The fields of one JSON object.
///
/// Every reading method marks its field as known and returns the default where the field is missing or wrong; what is
/// wrong is told by [`Fields::finish`].
///
/// ```
/// use calotype_core::Fields;
///
/// let config = serde_json::json!({ "hidden_size": 64, "num_layers": 100000, "hiden_act": "gelu" });
/// let mut fields = Fields::new("Example", &config);
/// let width = fields.size("hidden_size", 512);
/// let layers = fields.count("num_layers", 12);
/// let activation: String = fields.get("hidden_act", "relu".to_owned());
/// fields.refuse_unknown();
/// assert_eq!((width, layers, activation.as_str()), (64, 12, "relu"));
/// let error = fields.finish(width).unwrap_err();
/// assert!(error.names("num_layers"));
/// assert_eq!(
///     error.to_string(),
///     "Example configuration: `hiden_act`: is not known; did you mean `hidden_act`?; \
///      `num_layers` = 100000: must be a whole number from 1 to 256"
/// );
/// ```
#[derive(Debug)]
pub struct Fields<'a> {
    what: String,
    /// The objects around, each with a point behind it; empty for the outermost.
    path: String,
    /// None where the object is left out or is none.
    object: Option<&'a Map<String, Value>>,
    null_is_missing: bool,
    known: BTreeSet<&'static str>,
    /// Fields of no effect, with the only value that has none; any value where there is none.
    harmless: Vec<(&'static str, Option<Value>)>,
    problems: Vec<FieldProblem>,
}

impl<'a> Fields<'a> {
    /// The fields of the configuration of a class or model, which errors name. A field that is null has its default.
    pub fn new(what: impl Into<String>, config: &'a Value) -> Self {
        let mut fields = Self {
            what: what.into(),
            path: String::new(),
            object: config.as_object(),
            null_is_missing: true,
            known: BTreeSet::new(),
            harmless: Vec::new(),
            problems: Vec::new(),
        };
        if fields.object.is_none() {
            fields.problem("", "it is not a JSON object");
        }
        fields
    }

    /// The same where null is a value like others, and only a field that is missing has its default.
    pub fn with_nulls(mut self) -> Self {
        self.null_is_missing = false;
        self
    }

    /// A field's value, if it is there.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.insert(name);
        let value = self.object?.get(name)?;
        (!(self.null_is_missing && value.is_null())).then_some(value)
    }

    /// A value of any type; types with names of their own (enumerations) tell them in the error.
    pub fn get<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> T {
        let Some(value) = self.raw(name) else { return default };
        T::deserialize(value).unwrap_or_else(|error| {
            self.wrong(name, value, crate::words::plain(&error.to_string()));
            default
        })
    }

    /// A switch. Null is false whatever the default is, as Python's `None` is where a condition asks for it.
    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        let null = self.object.and_then(|object| object.get(name)).is_some_and(Value::is_null);
        self.get(name, default) && !null
    }

    /// A finite number that `f32` can hold.
    pub fn number(&mut self, name: &'static str, default: f64) -> f64 {
        let Some(value) = self.raw(name) else { return default };
        value.as_f64().filter(|number| number.abs() <= f64::from(f32::MAX)).unwrap_or_else(|| {
            self.wrong(name, value, "must be a number");
            default
        })
    }

    /// A whole number within bounds.
    pub fn whole(&mut self, name: &'static str, default: usize, bounds: RangeInclusive<usize>) -> usize {
        let Some(value) = self.raw(name) else { return default };
        within(value, &bounds).unwrap_or_else(|| {
            self.wrong(name, value, format!("must be {}", described(&bounds)));
            default
        })
    }

    /// An extent: 1 to [`MOST`].
    pub fn size(&mut self, name: &'static str, default: usize) -> usize {
        self.whole(name, default, 1..=MOST)
    }

    /// A number of layers: 1 to [`MOST_LAYERS`].
    pub fn count(&mut self, name: &'static str, default: usize) -> usize {
        self.whole(name, default, 1..=MOST_LAYERS)
    }

    /// An extent that may be null or left out.
    pub fn optional_size(&mut self, name: &'static str) -> Option<usize> {
        let value = self.raw(name).filter(|value| !value.is_null())?;
        let size = within(value, &(1..=MOST));
        if size.is_none() {
            self.wrong(name, value, format!("must be null or {}", described(&(1..=MOST))));
        }
        size
    }

    /// The side of a square: an extent, or a list of two equal ones.
    pub fn square(&mut self, name: &'static str, default: usize) -> usize {
        let Some(value) = self.raw(name) else { return default };
        let side = match value {
            Value::Array(sides) if sides.len() == 2 && sides[0] == sides[1] => &sides[0],
            one => one,
        };
        within(side, &(1..=MOST)).unwrap_or_else(|| {
            self.wrong(
                name,
                value,
                format!("must be {}, or two equal ones: only squares are built", described(&(1..=MOST))),
            );
            default
        })
    }

    /// Extents of the levels of a network: 1 to [`MOST_LEVELS`] of them.
    pub fn levels(&mut self, name: &'static str, default: &[usize]) -> Vec<usize> {
        let Some(value) = self.raw(name) else { return default.to_vec() };
        let items = value.as_array().filter(|items| (1..=MOST_LEVELS).contains(&items.len()));
        let sizes = items.and_then(|items| items.iter().map(|item| within(item, &(1..=MOST))).collect());
        sizes.unwrap_or_else(|| {
            let each = described(&(1..=MOST));
            self.wrong(name, value, format!("must be a list of 1 to {MOST_LEVELS} entries, each {each}"));
            default.to_vec()
        })
    }

    /// One number for all levels, or a list with one for each.
    pub fn per_level(
        &mut self,
        name: &'static str,
        default: usize,
        levels: usize,
        bounds: RangeInclusive<usize>,
    ) -> Vec<usize> {
        let same = vec![default; levels];
        let Some(value) = self.raw(name) else { return same };
        let numbers = match value {
            Value::Array(items) => items.iter().map(|item| within(item, &bounds)).collect::<Option<Vec<_>>>(),
            one => within(one, &bounds).map(|number| vec![number; levels]),
        };
        if let Some(numbers) = numbers.filter(|numbers| numbers.len() == levels) {
            return numbers;
        }
        self.wrong(name, value, format!("must be {}, or a list of {levels}, one for each level", described(&bounds)));
        same
    }

    /// A number that may be a list, with the same number everywhere.
    pub fn uniform(&mut self, name: &'static str, default: usize, bounds: RangeInclusive<usize>) -> usize {
        let Some(value) = self.raw(name) else { return default };
        let first = match value {
            Value::Array(items) => items.first().filter(|first| items.iter().all(|item| item == *first)),
            one => Some(one),
        };
        first.and_then(|first| within(first, &bounds)).unwrap_or_else(|| {
            self.wrong(name, value, format!("must be {}, the same for all levels", described(&bounds)));
            default
        })
    }

    /// A name; `takes` says which there are.
    pub fn named<T>(
        &mut self,
        name: &'static str,
        default: T,
        of: impl FnOnce(&str) -> Option<T>,
        takes: impl fmt::Display,
    ) -> T {
        let Some(value) = self.raw(name) else { return default };
        value.as_str().and_then(of).unwrap_or_else(|| {
            self.wrong(name, value, format!("is not supported; it takes {takes}"));
            default
        })
    }

    /// A field of which only some values are built; a list must have one of them everywhere.
    pub fn fixed(&mut self, name: &'static str, allowed: &[Value]) {
        let Some(value) = self.raw(name) else { return };
        let fits = |value: &Value| allowed.iter().any(|allowed| equal(value, allowed));
        if !fits(value) && !value.as_array().is_some_and(|values| values.iter().all(fits)) {
            let allowed = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
            self.wrong(name, value, format!("is not supported, only {allowed}"));
        }
    }

    /// The field that names the class or type of a model; where it is there, it must be one of these.
    pub fn kind(&mut self, name: &'static str, kinds: &[&str]) {
        let Some(value) = self.raw(name) else { return };
        if !value.as_str().is_some_and(|found| kinds.contains(&found)) {
            self.wrong(name, value, format!("is another model; this one is {}", kinds.join(" or ")));
        }
    }

    /// Fields without an effect.
    pub fn ignore(&mut self, names: &[&'static str]) {
        self.known.extend(names);
    }

    /// Fields that other programs write and that have no effect, with the only value for which that is so; any value where
    /// there is none. [`Fields::refuse_unknown`] passes them.
    pub fn harmless(&mut self, fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) {
        self.harmless.extend(fields);
    }

    /// The fields that are there, that nothing asked for, and that have no effect: nulls, and those said to be
    /// [harmless](Self::harmless).
    pub fn passed(&self) -> Vec<String> {
        self.unasked()
            .filter(|(name, value)| self.has_no_effect(name, value))
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// Fields that were not asked for; those that begin with an underscore belong to the library that wrote them.
    fn unasked(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let fields = self.object.into_iter().flatten().map(|(name, value)| (name.as_str(), value));
        fields.filter(|(name, _)| !name.starts_with('_') && !self.known.contains(name))
    }

    fn has_no_effect(&self, name: &str, value: &Value) -> bool {
        let same = |only: &Option<Value>| only.as_ref().is_none_or(|only| equal(value, only));
        value.is_null() || self.harmless.iter().any(|(known, only)| *known == name && same(only))
    }

    /// The fields of an object inside this one; one that is missing has no fields.
    pub fn nested<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Fields<'a>) -> T) -> T {
        let value = self.raw(name);
        if let Some(value) = value.filter(|value| !value.is_object()) {
            self.wrong(name, value, "must be an object");
        }
        let mut inner = Fields {
            what: self.what.clone(),
            path: format!("{}{name}.", self.path),
            object: value.and_then(Value::as_object),
            null_is_missing: self.null_is_missing,
            known: BTreeSet::new(),
            harmless: Vec::new(),
            problems: Vec::new(),
        };
        let outcome = read(&mut inner);
        self.problems.append(&mut inner.problems);
        outcome
    }

    /// Notes that a field's value is wrong.
    pub fn wrong(&mut self, name: &str, value: &Value, problem: impl Into<String>) {
        let (field, value) = (format!("{}{name}", self.path), Some(shown(value)));
        self.problems.push(FieldProblem { field, value, problem: problem.into(), unknown: false });
    }

    /// Notes what is wrong with a field besides its value alone; with no name, with the whole.
    pub fn problem(&mut self, name: &str, problem: impl Into<String>) {
        let field = if name.is_empty() { String::new() } else { format!("{}{name}", self.path) };
        self.problems.push(FieldProblem { field, value: None, problem: problem.into(), unknown: false });
    }

    /// Notes a problem of a field unless all is well.
    pub fn check(&mut self, ok: bool, name: &str, problem: impl FnOnce() -> String) {
        if !ok {
            self.problem(name, problem());
        }
    }

    /// The fields that were asked for so far.
    pub fn known(&self) -> &BTreeSet<&'static str> {
        &self.known
    }

    /// Notes every field that was not asked for and may have an effect.
    pub fn refuse_unknown(&mut self) {
        let unknown: Vec<&str> =
            self.unasked().filter(|(name, value)| !self.has_no_effect(name, value)).map(|(name, _)| name).collect();
        let mut problems: Vec<FieldProblem> = Vec::new();
        for name in unknown.iter().take(NAMED) {
            let hint = self.similar(name).map_or(String::new(), |known| format!("; did you mean `{known}`?"));
            let (field, problem) = (format!("{}{}", self.path, cut(name)), format!("is not known{hint}"));
            problems.push(FieldProblem { field, value: None, problem, unknown: true });
        }
        if unknown.len() > NAMED {
            let problem = format!("{} more fields are not known", unknown.len() - NAMED);
            problems.push(FieldProblem { field: String::new(), value: None, problem, unknown: false });
        }
        self.problems.splice(0..0, problems);
    }

    fn similar(&self, name: &str) -> Option<&'static str> {
        let scored = self.known.iter().map(|known| (strsim::normalized_damerau_levenshtein(name, known), *known));
        scored.filter(|(score, _)| *score >= SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
    }

    /// Ends the reading: `outcome`, if nothing was wrong.
    ///
    /// # Errors
    /// [`FieldsError`] with everything that was.
    pub fn finish<T>(self, outcome: T) -> Result<T, FieldsError> {
        match self.problems.is_empty() {
            true => Ok(outcome),
            false => Err(FieldsError { what: self.what, problems: self.problems }),
        }
    }

    /// The same with a check of what was read, which is made if nothing was wrong so far.
    ///
    /// # Errors
    /// As [`Fields::finish`]; the check's own error is the one problem then.
    pub fn finish_checked<T, E: fmt::Display>(
        mut self,
        outcome: T,
        check: impl FnOnce(&T) -> Result<(), E>,
    ) -> Result<T, FieldsError> {
        if self.problems.is_empty()
            && let Err(error) = check(&outcome)
        {
            self.problem("", error.to_string());
        }
        self.finish(outcome)
    }
}

fn within(value: &Value, bounds: &RangeInclusive<usize>) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| bounds.contains(number))
}

fn described(bounds: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", bounds.start(), bounds.end())
}

/// A value as JSON, cut short.
fn shown(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Equality of JSON values for which 1 and 1.0 are the same.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem<T>(config: &Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> String {
        let mut fields = Fields::new("Net", config);
        read(&mut fields);
        fields.finish(()).unwrap_err().to_string()
    }

    #[test]
    fn defaults_hold_where_a_field_is_missing_or_null() {
        let config = json!({ "a": null, "b": 3 });
        let mut fields = Fields::new("Net", &config);
        assert_eq!([fields.size("a", 7), fields.size("b", 7), fields.size("c", 7)], [7, 3, 7]);
        assert_eq!(fields.levels("c", &[1, 2]), [1, 2]);
        assert_eq!(fields.per_level("b", 1, 3, 1..=4), [3, 3, 3]);
        assert_eq!(fields.nested("c", |inner| inner.size("d", 5)), 5);
        assert_eq!(fields.optional_size("a"), None);
        assert!(fields.finish(()).is_ok());
        let mut fields = Fields::new("Net", &config);
        assert_eq!([fields.flag("a", true), fields.flag("a", false), fields.flag("c", true)], [false, false, true]);
        let mut fields = Fields::new("Net", &config).with_nulls();
        assert_eq!((fields.get("a", Some(1)), fields.size("a", 7)), (None, 7));
        assert!(fields.finish(()).unwrap_err().names("a"));
    }

    #[test]
    fn every_problem_is_collected() {
        let config = json!({ "a": -1, "inner": { "b": "x" }, "c": [1, 2], "other": 1 });
        let mut fields = Fields::new("Net", &config);
        fields.size("a", 1);
        fields.nested("inner", |inner| inner.number("b", 0.0));
        fields.square("c", 4);
        fields.fixed("other", &[json!(2.0)]);
        let error = fields.finish(()).unwrap_err();
        let names: Vec<&str> = error.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(names, ["a", "inner.b", "c", "other"]);
        assert!(error.to_string().starts_with("Net configuration: `a` = -1: must be a whole number"), "{error}");
    }

    #[test]
    fn hostile_numbers_are_refused() {
        for value in [json!(0), json!(1_048_577), json!(1e20), json!(u64::MAX), json!(1.5), json!("8"), json!([])] {
            for text in [
                problem(&json!({ "n": value }), |fields| fields.size("n", 1)),
                problem(&json!({ "n": value }), |fields| fields.count("n", 1)),
                problem(&json!({ "n": value }), |fields| fields.optional_size("n")),
                problem(&json!({ "n": value }), |fields| fields.square("n", 1)),
                problem(&json!({ "n": value }), |fields| fields.uniform("n", 1, 1..=MOST)),
                problem(&json!({ "n": value }), |fields| fields.per_level("n", 1, 3, 1..=MOST)),
                problem(&json!({ "n": [value] }), |fields| fields.levels("n", &[1])),
            ] {
                assert!(text.contains("`n` = ") && text.contains("whole number"), "{text}");
            }
        }
        assert!(problem(&json!({ "n": 257 }), |fields| fields.count("n", 1)).contains("1 to 256"));
        for levels in [vec![], vec![1; 9]] {
            assert!(problem(&json!({ "n": levels }), |fields| fields.levels("n", &[1])).contains("1 to 8"));
        }
        assert!(problem(&json!({ "n": 1e300 }), |fields| fields.number("n", 0.0)).contains("number"));
    }

    #[test]
    fn messages_stay_short() {
        let text = problem(&json!({ "n": "x".repeat(100_000) }), |fields| fields.size("n", 1));
        assert!(text.len() < 300, "{text}");
        let many: Map<String, Value> = (0..10_000).map(|i| (format!("field{i}"), json!(1))).collect();
        let text = problem(&Value::Object(many), |fields| fields.refuse_unknown());
        assert!(text.len() < 500 && text.contains("9992 more"), "{text}");
    }

    #[test]
    fn unknown_fields_are_refused_with_a_suggestion() {
        let text = problem(&json!({ "norm_group": 1, "_version": 2, "zzz": 3 }), |fields| {
            fields.ignore(&["norm_groups"]);
            fields.refuse_unknown();
        });
        assert!(text.contains("`norm_group`: is not known; did you mean `norm_groups`?"), "{text}");
        assert!(text.contains("`zzz`: is not known") && !text.contains("_version"), "{text}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(problem(&json!([1]), |_| ()).contains("not a JSON object"));
        assert!(
            problem(&json!({ "a": 1 }), |fields| fields.nested("a", |_| ())).contains("`a` = 1: must be an object")
        );
    }

    #[test]
    fn lists_of_fixed_values_fit() {
        let config = json!({ "a": [false, false], "b": 1.0, "kind": "t5" });
        let mut fields = Fields::new("Net", &config);
        fields.fixed("a", &[json!(false)]);
        fields.fixed("b", &[json!(1)]);
        fields.kind("kind", &["clip", "t5"]);
        assert!(fields.finish(()).is_ok());
        assert!(problem(&config, |fields| fields.kind("kind", &["clip"])).contains("another model; this one is clip"));
    }
}
