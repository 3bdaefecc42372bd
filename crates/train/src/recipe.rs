//! Recipes: typed TOML configuration with inheritance, overrides and errors that point at the key.
//!
//! A recipe is a TOML file. A top-level `base = "name or path"` makes it inherit another recipe: tables are merged
//! key by key, everything else (arrays too) is replaced. A table inside may have a `base` of its own. `key.sub=value` overrides come
//! last. The merged table is read into the caller's type, and every key must be one that the type knows. A table `[about]` says what
//! the recipe is for; it is not inherited and no part of the typed value.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use calotype_core::durable;
use calotype_core::words::plain;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a recipe.
    File {
        /// Path, or name of the embedded recipe.
        name: String,
        /// Line, counted from 1.
        line: usize,
    },
    /// In a `key=value` override; holds its text.
    Override(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line } => write!(formatter, "{name} line {line}"),
            Origin::Override(text) => write!(formatter, "override `{text}`"),
        }
    }
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// Neither a file nor a known recipe.
    #[error("{}{}{}", no_recipe(name), asked_by(asked_by_file), suggest_names(nearest))]
    UnknownRecipe {
        /// The name or path asked for.
        name: String,
        /// The recipe whose `base` it is; empty for the command line.
        asked_by_file: String,
        /// The most similar known names, best first.
        nearest: Vec<String>,
    },
    /// The file cannot be read.
    #[error("{file}: cannot read the recipe: {source}; check its permissions and that it is UTF-8 text")]
    Read {
        /// The recipe.
        file: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Not TOML.
    #[error("{file}: not valid TOML: {message}")]
    Syntax {
        /// The recipe.
        file: String,
        /// The parser's message with line and column.
        message: String,
    },
    /// `base` is not a string.
    #[error("{file}: `base` must be a string, the name or relative path of one recipe, not {got}")]
    BaseNotAString {
        /// The recipe.
        file: String,
        /// The type found.
        got: &'static str,
    },
    /// Recipes that are each other's base.
    #[error("recipes inherit in a circle: {}; remove one `base`", chain.join(" -> "))]
    Cycle {
        /// The recipes from the first to its repetition.
        chain: Vec<String>,
    },
    /// An override without `=`, or with an unusable key.
    #[error("override `{text}`: {reason}; write it as `key.sub=value`")]
    OverrideSyntax {
        /// The override.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two overrides of one command line, of which only one could hold.
    #[error(
        "the overrides `{first}` and `{second}` contradict each other, and one would be dropped: leave one of them out"
    )]
    Contradiction {
        /// The one that would be dropped.
        first: String,
        /// The one behind it.
        second: String,
    },
    /// A key that the recipe's type does not have.
    #[error("{origin}: unknown key `{key}`; {}", suggest_key(nearest.as_deref(), note, known))]
    UnknownKey {
        /// The full dotted key.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// The full dotted key that was probably meant.
        nearest: Option<String>,
        /// What else to know about that key; empty for most.
        note: &'static str,
        /// The keys known at that place.
        known: Vec<String>,
    },
    /// A key without a default is absent.
    #[error("{file}: the key `{key}` is missing; add it to the recipe or pass `{key}=value`")]
    MissingKey {
        /// The full dotted key.
        key: String,
        /// The recipe that was asked for.
        file: String,
    },
    /// An override sets a key of a table that the recipe does not have, and the table needs another key.
    #[error("override `{text}`: the recipe has no `{table}`, and one needs the key `{key}`; pass `{key}=value`, too")]
    MissingBeside {
        /// The full dotted key that is missing.
        key: String,
        /// The table that it is missing in.
        table: String,
        /// The override.
        text: String,
    },
    /// A value of the wrong type, or outside what the type accepts.
    #[error("{origin}: key `{key}`: {message}")]
    InvalidValue {
        /// The full dotted key.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// What the key takes, and what stands there instead.
        message: String,
    },
    /// The typed value cannot be written as TOML: a fault of the recipe type.
    #[error("{file}: the resolved recipe cannot be written as TOML: {message}; its type holds something TOML lacks")]
    Unwritable {
        /// The recipe.
        file: String,
        /// The serializer's message.
        message: String,
    },
    /// The resolved recipe cannot be saved.
    #[error("{}: cannot write the resolved recipe: {source}; check the folder and the free space", path.display())]
    Save {
        /// Where it should go.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl RecipeError {
    /// Whether the user's recipe or command line is at fault (exit code 2) and not the work (exit code 1).
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Unwritable { .. } | Self::Save { .. })
    }
}

fn asked_by(file: &str) -> String {
    if file.is_empty() { String::new() } else { format!(" (the `base` of {file})") }
}

fn no_recipe(name: &str) -> String {
    match name.ends_with(".toml") {
        true => format!("there is no file `{name}`, and no recipe of that name"),
        false => format!("there is no recipe `{name}`"),
    }
}

fn suggest_names(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return "; pass a path ending in .toml, or one of the names that `calotype recipes` lists".to_owned();
    }
    let names = nearest.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
    format!("; did you mean {names}? `calotype recipes` lists all")
}

fn suggest_key(nearest: Option<&str>, note: &str, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?{note}"),
        None if known.is_empty() => "no keys are allowed there: remove it".to_owned(),
        None => format!("the keys known there are {}", known.join(", ")),
    }
}

/// A recipe with everything inherited, overridden and defaulted.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The typed configuration.
    pub value: T,
    /// The whole configuration as TOML, defaults included; loading it again gives the same value.
    pub text: String,
    /// What it was made from, in the order of application: the outermost base first, overrides last.
    pub sources: Vec<String>,
}

impl<T> Resolved<T> {
    /// The value with its text, as stages take it.
    pub fn as_recipe(&self) -> crate::stages::Recipe<'_, T> {
        crate::stages::Recipe { value: &self.value, text: &self.text }
    }

    /// Writes [`text`](Self::text) to a file, atomically.
    ///
    /// # Errors
    /// [`RecipeError::Save`].
    pub fn save(&self, path: &Path) -> Result<(), RecipeError> {
        durable::replace_file(path, |writer| writer.write_all(self.text.as_bytes()))
            .map_err(|source| RecipeError::Save { path: path.to_owned(), source })
    }
}

/// What a recipe is for and what it needs, in a few words each: its table `[about]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct About {
    /// What it is good for.
    pub purpose: String,
    /// Of the network and of the work, such as `5.1 M parameters`.
    pub size: String,
    /// Largest resident memory.
    pub memory: String,
    /// How long it takes, and on what.
    pub time: String,
}

#[derive(Clone)]
enum Root {
    Embedded(&'static [(&'static str, &'static str)]),
    Folder(PathBuf),
}

/// Finds and loads recipes.
#[derive(Default)]
pub struct RecipeLoader {
    roots: Vec<Root>,
    /// What [`OUT`] stands for.
    out: Option<String>,
}

/// At the beginning of a text in a recipe: the folder of the run that the recipe is loaded for ([`RecipeLoader::out`]).
pub const OUT: &str = "{out}";

/// Where one recipe is.
#[derive(Clone)]
enum Place {
    Embedded(String),
    File(PathBuf),
}

impl Place {
    /// Whether both are the same recipe, by whatever path (`a/../b.toml` and links are resolved).
    fn is(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Embedded(a), Place::Embedded(b)) => a == b,
            (Place::File(a), Place::File(b)) => a == b || a.canonicalize().ok() == b.canonicalize().ok(),
            _ => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Embedded(name) => write!(formatter, "built-in recipe {name}"),
            Place::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// A table on its way to becoming a recipe, with the origin of every key (dotted, arrays as `key[index]`).
#[derive(Default)]
struct Merged {
    table: Table,
    origins: BTreeMap<String, Origin>,
    sources: Vec<String>,
}

/// Puts a folder in place of [`OUT`] at the beginning of all texts.
fn put_out(value: &mut Value, folder: &str) {
    match value {
        Value::String(text) => {
            if let Some(rest) = text.strip_prefix(OUT).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                *text = format!("{folder}{rest}");
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| put_out(value, folder)),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| put_out(value, folder)),
        _ => {}
    }
}

impl RecipeLoader {
    /// A loader that knows only paths; add roots for names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds recipes compiled into the program, as (name, text); names have slashes and no `.toml`.
    pub fn embedded(mut self, recipes: &'static [(&'static str, &'static str)]) -> Self {
        self.roots.push(Root::Embedded(recipes));
        self
    }

    /// Adds a folder: `folder/a/b.toml` is the recipe `a/b`. Roots added earlier win.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.roots.push(Root::Folder(folder.into()));
        self
    }

    /// The same loader for a run in `folder`: texts that are `{out}`, or begin with `{out}/`, name this folder or lie in it. Without
    /// one they stay as they are.
    pub fn out(&self, folder: &Path) -> Self {
        Self { roots: self.roots.clone(), out: Some(folder.display().to_string()) }
    }

    /// The names of all recipes in all roots, sorted, without repetition.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for root in &self.roots {
            match root {
                Root::Embedded(recipes) => names.extend(recipes.iter().map(|(name, _)| (*name).to_owned())),
                Root::Folder(folder) => list_folder(folder, "", &mut names),
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// What a recipe says of itself; none if it says nothing.
    ///
    /// # Errors
    /// [`RecipeError`]: it is not there, or its table `[about]` holds something else.
    pub fn about(&self, name_or_path: &str) -> Result<Option<About>, RecipeError> {
        let (place, text) = self.find(name_or_path, None)?;
        let file = place.to_string();
        let (mut table, origins) = parse(&file, &text)?;
        take_about(&file, &mut table, &origins)
    }

    /// Refuses the overrides of one command line if one of them would drop another: a key with two values, or two keys that say the
    /// same in other ways (`data.path`, `data.sources`). For [`RecipeLoader::load`] they are layers, and the last one wins.
    ///
    /// # Errors
    /// [`RecipeError::Contradiction`], and those of the recipe itself.
    pub fn check_overrides(&self, name_or_path: &str, overrides: &[String]) -> Result<(), RecipeError> {
        let (place, text) = self.find(name_or_path, None)?;
        let mut merged = Merged::default();
        self.merge_recipe(&place, &text, &mut Vec::new(), &mut merged)?;
        for text in overrides {
            let (table, origins) = parse_override(text)?;
            merged.renew_schedule(&table);
            if let Some(first) = merged.dropped_override(&table) {
                return Err(RecipeError::Contradiction { first, second: text.clone() });
            }
            merged.apply(table, origins, format!("override {text}"));
        }
        Ok(())
    }

    /// Loads a recipe by name or path and applies `key.sub=value` overrides. An override's value is read as TOML
    /// (`lr=1e-4`, `model.channels=[64, 128]`, `name="a b"`); what is not TOML is taken as a string (`name=foo`).
    ///
    /// # Errors
    /// [`RecipeError`]; unknown keys are errors whether or not `T` denies them.
    pub fn load<T>(&self, name_or_path: &str, overrides: &[String]) -> Result<Resolved<T>, RecipeError>
    where
        T: DeserializeOwned + Serialize,
    {
        let (place, text) = self.find(name_or_path, None)?;
        let file = place.to_string();
        let mut merged = Merged::default();
        self.merge_recipe(&place, &text, &mut Vec::new(), &mut merged)?;
        for text in overrides {
            let (mut table, mut origins) = parse_override(text)?;
            self.inherit_inside(None, &mut table, "", &mut origins, &[])?;
            merged.apply(table, origins, format!("override {text}"));
        }
        if let Some(out) = &self.out {
            merged.table.iter_mut().for_each(|(_, value)| put_out(value, out));
        }
        let value: T = read_typed(&merged, &file)?;
        let unwritable = |error: toml::ser::Error| RecipeError::Unwritable { file, message: error.to_string() };
        let text = toml::to_string_pretty(&value).map_err(unwritable)?;
        Ok(Resolved { value, text, sources: merged.sources })
    }

    /// Merges a recipe's bases, then itself. `chain` holds the recipes whose `base` led here.
    fn merge_recipe(
        &self,
        place: &Place,
        text: &str,
        chain: &mut Vec<Place>,
        merged: &mut Merged,
    ) -> Result<(), RecipeError> {
        if let Some(start) = chain.iter().position(|earlier| earlier.is(place)) {
            let names = chain[start..].iter().chain([place]).map(Place::to_string).collect();
            return Err(RecipeError::Cycle { chain: names });
        }
        chain.push(place.clone());
        let file = place.to_string();
        let (mut table, mut origins) = parse(&file, text)?;
        origins.remove("base");
        take_about(&file, &mut table, &origins)?;
        origins.retain(|key, _| key != ABOUT && !key.starts_with("about."));
        match table.remove("base") {
            None => {}
            Some(Value::String(base)) => {
                let (base_place, base_text) = self.find(&base, Some(place))?;
                self.merge_recipe(&base_place, &base_text, chain, merged)?;
            }
            Some(other) => return Err(RecipeError::BaseNotAString { file, got: other.type_str() }),
        }
        self.inherit_inside(Some(place), &mut table, "", &mut origins, chain)?;
        merged.apply(table, origins, file);
        Ok(())
    }

    /// Puts the recipe that a table's own `base` names below the table: `[hooks.judge.recipe]` may be another recipe with changes.
    fn inherit_inside(
        &self,
        place: Option<&Place>,
        table: &mut Table,
        prefix: &str,
        origins: &mut BTreeMap<String, Origin>,
        chain: &[Place],
    ) -> Result<(), RecipeError> {
        for (key, value) in table.iter_mut() {
            let Value::Table(inner) = value else { continue };
            let path = join(prefix, key);
            self.inherit_inside(place, inner, &path, origins, chain)?;
            let base_key = join(&path, "base");
            let base = match inner.remove("base") {
                None => continue,
                Some(Value::String(base)) => base,
                Some(other) => {
                    let file = origins.get(&base_key).map_or(base_key, Origin::to_string);
                    return Err(RecipeError::BaseNotAString { file, got: other.type_str() });
                }
            };
            origins.remove(&base_key);
            let (base_place, text) = self.find(&base, place)?;
            let mut below = Merged::default();
            self.merge_recipe(&base_place, &text, &mut chain.to_vec(), &mut below)?;
            merge_tables(&mut below.table, std::mem::take(inner), "", &mut below.origins);
            *inner = below.table;
            for (key, origin) in below.origins {
                origins.entry(join(&path, &key)).or_insert(origin);
            }
        }
        Ok(())
    }

    /// Looks a recipe up: next to the recipe that names it as `base`, or as a path; then by name in every root.
    fn find(&self, spec: &str, asked_by: Option<&Place>) -> Result<(Place, String), RecipeError> {
        let found = match asked_by {
            Some(Place::Embedded(name)) => self.find_embedded(&sibling_name(name, spec)),
            Some(Place::File(path)) => find_file(&path.with_file_name(spec)),
            None => find_file(Path::new(spec)),
        };
        let name = spec.strip_suffix(".toml").unwrap_or(spec);
        let place = found.or_else(|| self.find_name(name)).ok_or_else(|| RecipeError::UnknownRecipe {
            name: spec.to_owned(),
            asked_by_file: asked_by.map(Place::to_string).unwrap_or_default(),
            nearest: nearest_names(name, &self.names()),
        })?;
        let text = self.read(&place)?;
        Ok((place, text))
    }

    fn find_name(&self, name: &str) -> Option<Place> {
        self.roots.iter().find_map(|root| match root {
            Root::Embedded(recipes) => {
                recipes.iter().any(|(known, _)| *known == name).then(|| Place::Embedded(name.to_owned()))
            }
            Root::Folder(folder) => find_file(&folder.join(name)),
        })
    }

    fn find_embedded(&self, name: &str) -> Option<Place> {
        self.embedded_text(name).map(|_| Place::Embedded(name.to_owned()))
    }

    fn embedded_text(&self, name: &str) -> Option<&'static str> {
        self.roots.iter().find_map(|root| match root {
            Root::Embedded(recipes) => recipes.iter().find(|(known, _)| *known == name).map(|(_, text)| *text),
            Root::Folder(_) => None,
        })
    }

    fn read(&self, place: &Place) -> Result<String, RecipeError> {
        match place {
            Place::Embedded(name) => Ok(self.embedded_text(name).unwrap_or_default().to_owned()),
            Place::File(path) => {
                calotype_core::read_text(path).map_err(|source| RecipeError::Read { file: place.to_string(), source })
            }
        }
    }
}

/// `path`, or `path` with `.toml` added, if that is a file.
fn find_file(path: &Path) -> Option<Place> {
    let mut with_extension = path.as_os_str().to_owned();
    with_extension.push(".toml");
    [path.to_owned(), PathBuf::from(with_extension)].into_iter().find(|path| path.is_file()).map(Place::File)
}

/// The name that `spec` means inside the folder of the embedded recipe `name` (`a/b` + `../c` = `c`).
fn sibling_name(name: &str, spec: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in spec.strip_suffix(".toml").unwrap_or(spec).split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// Collects the recipe names below a folder. Folders that cannot be listed contribute none: the list only serves
/// suggestions and help.
fn list_folder(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if path.is_dir() {
            list_folder(&path, &format!("{prefix}{name}/"), names);
        } else if let Some(stem) = name.strip_suffix(".toml") {
            names.push(format!("{prefix}{stem}"));
        }
    }
}

/// Up to three names most similar to `name`: with a folder of that name, alike as a whole, or in their last part.
fn nearest_names(name: &str, known: &[String]) -> Vec<String> {
    const ALIKE: f64 = 0.5;
    let name = name.trim_matches('/');
    let inside = |candidate: &str| format!("/{candidate}").contains(&format!("/{name}/"));
    let last = |full: &str| full.rsplit('/').next().unwrap_or_default().to_owned();
    let score = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(name, candidate);
        if !name.is_empty() && inside(candidate) {
            return (1.0, whole);
        }
        (whole.max(strsim::normalized_damerau_levenshtein(&last(name), &last(candidate))), whole)
    };
    let mut scored: Vec<_> = known.iter().map(|candidate| (score(candidate), candidate)).collect();
    scored.retain(|((score, _), _)| *score >= ALIKE);
    // Many recipes of different models have the same last part: among those the whole name decides.
    scored.sort_by(|((a, whole_a), _), ((b, whole_b), _)| b.total_cmp(a).then(whole_b.total_cmp(whole_a)));
    scored.into_iter().take(3).map(|(_, candidate)| candidate.clone()).collect()
}

/// The table that a recipe says its purpose in.
const ABOUT: &str = "about";

/// Takes the table `[about]` out of a recipe.
fn take_about(file: &str, table: &mut Table, origins: &BTreeMap<String, Origin>) -> Result<Option<About>, RecipeError> {
    let Some(value) = table.remove(ABOUT) else { return Ok(None) };
    value.try_into().map(Some).map_err(|error: toml::de::Error| RecipeError::InvalidValue {
        key: ABOUT.to_owned(),
        origin: origins.get(ABOUT).cloned().unwrap_or_else(|| Origin::File { name: file.to_owned(), line: 1 }),
        message: plain(error.message()),
    })
}

fn parse(file: &str, text: &str) -> Result<(Table, BTreeMap<String, Origin>), RecipeError> {
    let syntax = |error: toml::de::Error| RecipeError::Syntax { file: file.to_owned(), message: error.to_string() };
    let table: Table = toml::from_str(text).map_err(syntax)?;
    let spanned = toml::de::DeTable::parse(text).map_err(syntax)?;
    let mut origins = BTreeMap::new();
    let origin_at = |offset: usize| Origin::File { name: file.to_owned(), line: line_at(text, offset) };
    note_table(spanned.get_ref(), "", &origin_at, &mut origins);
    Ok((table, origins))
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}

fn note_table(
    table: &toml::de::DeTable<'_>,
    prefix: &str,
    origin_at: &impl Fn(usize) -> Origin,
    origins: &mut BTreeMap<String, Origin>,
) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        origins.insert(path.clone(), origin_at(key.span().start));
        note_value(value.get_ref(), &path, origin_at, origins);
    }
}

fn note_value(
    value: &toml::de::DeValue<'_>,
    path: &str,
    origin_at: &impl Fn(usize) -> Origin,
    origins: &mut BTreeMap<String, Origin>,
) {
    match value {
        toml::de::DeValue::Table(table) => note_table(table, path, origin_at, origins),
        toml::de::DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                origins.insert(path.clone(), origin_at(item.span().start));
                note_value(item.get_ref(), &path, origin_at, origins);
            }
        }
        _ => {}
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// Keys that say the same in other ways: a place that sets the first takes back the others that an earlier place set.
const REPLACED: [(&str, &[&str]); 8] = [
    ("data.sources", &["data.path"]),
    ("data.path", &["data.sources"]),
    ("optimizer.schedule.name", &["optimizer.decay", "optimizer.warmup_samples"]),
    ("optimizer.learning_rate", &["optimizer.base_learning_rate"]),
    ("optimizer.base_learning_rate", &["optimizer.learning_rate"]),
    ("hooks.benchmark.figures", &["hooks.benchmark.path", "hooks.benchmark.metrics"]),
    ("hooks.benchmark.path", &["hooks.benchmark.figures", "hooks.benchmark.metrics"]),
    ("hooks.benchmark.metrics", &["hooks.benchmark.figures", "hooks.benchmark.path"]),
];

/// Tables whose `name` decides which other keys they have: table, its usual name, keys that all names have. A place that sets
/// another name takes back the former one's keys that an earlier place set.
const NAMED: [(&str, &str, &[&str]); 3] = [
    ("ema", "half_life", &[]),
    (
        "optimizer",
        "adamw",
        &[
            "learning_rate",
            "base_learning_rate",
            "state",
            "weight_decay",
            "gradient_clip",
            "accumulate",
            "in_backward",
            "schedule",
            "warmup_samples",
            "decay",
            "groups",
        ],
    ),
    ("optimizer.schedule", "constant", &["warmup"]),
];

/// The table that says how the learning rate goes through a run.
const SCHEDULE: &str = "optimizer.schedule";

/// Keys of the tables that say one length in different units: another unit takes the place of the former one.
const UNITS: [&str; 2] = ["samples", "steps"];

fn is_length(table: &Table) -> bool {
    table.len() == 1 && table.keys().all(|key| UNITS.contains(&key.as_str()))
}

/// The value at a dotted key.
fn at<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    let mut parts = key.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.as_table()?.get(part))
}

/// Removes the value at a dotted key.
fn remove(table: &mut Table, key: &str) {
    match key.split_once('.') {
        None => drop(table.remove(key)),
        Some((first, rest)) => {
            if let Some(inner) = table.get_mut(first).and_then(Value::as_table_mut) {
                remove(inner, rest);
            }
        }
    }
}

impl Merged {
    /// Turns the earlier keys `decay` and `warmup_samples` into a schedule, where a new place sets keys of a schedule without
    /// naming one: they are meant for the schedule that the recipe has, however it is written there.
    fn renew_schedule(&mut self, new: &Table) {
        let nameless = at(new, SCHEDULE).and_then(Value::as_table).is_some_and(|keys| !keys.contains_key("name"));
        let optimizer = self.table.get_mut("optimizer").and_then(Value::as_table_mut);
        let Some(optimizer) = optimizer.filter(|keys| nameless && !keys.contains_key("schedule")) else { return };
        let earlier = [("decay", "name"), ("warmup_samples", "warmup")];
        let mut schedule: Table =
            earlier.into_iter().filter_map(|(old, new)| Some((new.to_owned(), optimizer.remove(old)?))).collect();
        if schedule.is_empty() {
            return;
        }
        schedule.entry("name").or_insert_with(|| "constant".into());
        optimizer.insert("schedule".to_owned(), Value::Table(schedule));
        for (old, new) in earlier {
            if let Some(origin) = self.origins.remove(&format!("optimizer.{old}")) {
                self.origins.insert(SCHEDULE.to_owned(), origin.clone());
                self.origins.insert(format!("{SCHEDULE}.{new}"), origin);
            }
        }
    }

    /// The keys of what earlier places set and a new one says in another way.
    fn said_otherwise(&self, new: &Table) -> Vec<String> {
        let mut gone: Vec<String> = Vec::new();
        for (key, others) in REPLACED {
            if at(new, key).is_some() {
                gone.extend(others.iter().filter(|other| at(new, other).is_none()).map(|other| (*other).to_owned()));
            }
        }
        for (table, usual, common) in NAMED {
            let name = |of: &Table| at(of, &format!("{table}.name")).and_then(Value::as_str).map(str::to_owned);
            let (Some(before), Some(now)) = (at(&self.table, table).and_then(Value::as_table), name(new)) else {
                continue;
            };
            if name(&self.table).as_deref().unwrap_or(usual) != now {
                let own = before.keys().filter(|key| key.as_str() != "name" && !common.contains(&key.as_str()));
                gone.extend(own.map(|key| format!("{table}.{key}")));
            }
        }
        gone
    }

    /// Takes back what earlier places set and a new one says in another way.
    fn take_back(&mut self, new: &Table) {
        for key in self.said_otherwise(new) {
            remove(&mut self.table, &key);
            self.origins.retain(|known, _| *known != key && !known.starts_with(&format!("{key}.")));
        }
    }

    /// An override whose value a new place would take back, or replace by another.
    fn dropped_override(&self, new: &Table) -> Option<String> {
        let mut lost = self.said_otherwise(new);
        lost.retain(|key| at(&self.table, key).is_some());
        replaced(&self.table, new, "", &mut lost);
        let of_override = |(known, origin): (&String, &Origin)| match origin {
            Origin::Override(text) if lost.iter().any(|key| is_inside(known, key)) => Some(text.clone()),
            _ => None,
        };
        self.origins.iter().find_map(of_override)
    }

    fn apply(&mut self, table: Table, origins: BTreeMap<String, Origin>, source: String) {
        self.renew_schedule(&table);
        self.take_back(&table);
        merge_tables(&mut self.table, table, "", &mut self.origins);
        self.origins.extend(origins);
        self.sources.push(source);
    }

    /// The origin of a key, or of the nearest key around it.
    fn origin(&self, key: &str, file: &str) -> Origin {
        let mut path = key;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Origin::File { name: file.to_owned(), line: 1 },
            }
        }
    }
}

/// An override as a table of its one value, and the origins of the keys that lead to it and of those inside it.
fn parse_override(text: &str) -> Result<(Table, BTreeMap<String, Origin>), RecipeError> {
    let refuse = |reason| RecipeError::OverrideSyntax { text: text.to_owned(), reason };
    let (key, value) = text.split_once('=').ok_or_else(|| refuse("there is no `=`"))?;
    let parts = key_parts(key.trim()).ok_or_else(|| refuse("the key is not a TOML key"))?;
    let origin = Origin::Override(text.to_owned());
    let mut origins = BTreeMap::new();
    let mut path = String::new();
    for part in &parts {
        path = join(&path, part);
        origins.insert(path.clone(), origin.clone());
    }
    let mut value = override_value(value);
    if let Value::Table(inner) = &value {
        origins.extend(dotted_keys(inner, &path).into_iter().map(|key| (key, origin.clone())));
    }
    for part in parts.into_iter().rev() {
        value = Value::Table(Table::from_iter([(part, value)]));
    }
    let Value::Table(table) = value else { return Err(refuse("the key is empty")) };
    Ok((table, origins))
}

/// The parts of a dotted key, by TOML's own rules (quoted parts may hold dots).
fn key_parts(key: &str) -> Option<Vec<String>> {
    if key.contains(['\n', '\r', '#', '=']) {
        return None;
    }
    let mut table: Table = toml::from_str(&format!("{key} = 0")).ok()?;
    let mut parts = Vec::new();
    loop {
        let (part, value) = std::mem::take(&mut table).into_iter().next()?;
        parts.push(part);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(parts),
        }
    }
}

/// An override's value: TOML if it is TOML, otherwise a string. Recipes hold no dates, so what only looks like one
/// (`name=2024-06-01`) is a string too.
fn override_value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok();
    match parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value")) {
        Some(Value::Datetime(_)) | None => Value::String(text.to_owned()),
        Some(value) => value,
    }
}

/// Whether `key` is `outer`, or a key or an entry inside it.
fn is_inside(key: &str, outer: &str) -> bool {
    key.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The keys whose values [`merge_tables`] would replace by others.
fn replaced(target: &Table, source: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (key, value) in source {
        let path = join(prefix, key);
        match (target.get(key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if !(is_length(old) && is_length(new)) => {
                replaced(old, new, &path, keys);
            }
            (Some(old), new) if old != new => keys.push(path),
            _ => {}
        }
    }
}

fn merge_tables(target: &mut Table, source: Table, prefix: &str, origins: &mut BTreeMap<String, Origin>) {
    for (key, value) in source {
        let path = join(prefix, &key);
        match (target.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if !(is_length(old) && is_length(&new)) => {
                merge_tables(old, new, &path, origins);
            }
            (_, value) => {
                // What is replaced takes the origins of everything inside it along.
                origins.retain(|known, _| !is_inside(known, &path));
                target.insert(key, value);
            }
        }
    }
}

fn read_typed<T: DeserializeOwned + Serialize>(merged: &Merged, file: &str) -> Result<T, RecipeError> {
    // Keys that a type without `deny_unknown_fields` would drop in silence.
    let mut dropped = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let read = {
        let tracked = serde_path_to_error::Deserializer::new(Value::Table(merged.table.clone()), &mut track);
        let mut note = |path: serde_ignored::Path<'_>| dropped.push(dotted(&path.to_string()));
        let noted = serde_ignored::Deserializer::new(tracked, &mut note);
        // Behind a pointer, the layers are compiled once and not for each recipe's types.
        T::deserialize(
            &mut <dyn erased_serde::Deserializer<'_>>::erase(noted) as &mut dyn erased_serde::Deserializer<'_>
        )
    };
    let value = read.map_err(|error| explain(merged, file, &track.path().to_string(), &error.to_string()))?;
    match dropped.first() {
        None => Ok(value),
        Some(key) => Err(dropped_key(merged, file, key, &value)),
    }
}

/// serde_ignored's path notation (`a.?.0.b`) in ours (`a[0].b`).
fn dotted(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if part.bytes().all(|byte| byte.is_ascii_digit()) && !out.is_empty() {
            out.push_str(&format!("[{part}]"));
        } else {
            out = join(&out, part);
        }
    }
    out
}

fn dropped_key<T: Serialize>(merged: &Merged, file: &str, key: &str, value: &T) -> RecipeError {
    let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
    let whole = Value::try_from(value).unwrap_or(Value::Table(Table::new()));
    let known = match lookup(&whole, parent) {
        Some(Value::Table(table)) => table.keys().cloned().collect(),
        _ => Vec::new(),
    };
    unknown_key(merged, file, parent, name, known)
}

/// Keys that have another name now.
const RENAMED: [(&str, &str); 1] = [("pictures", "images")];

/// Usual names of settings that stand elsewhere in recipes of training, with the key to set and what else to know.
const ELSEWHERE: [(&[&str], &str, &str); 10] = [
    (&["lr", "base_lr"], "optimizer.learning_rate", ""),
    (&["warmup", "warmup_steps", "lr_warmup_steps"], "optimizer.schedule.warmup", " Such as {steps=500}."),
    (&["lr_scheduler", "scheduler"], "optimizer.schedule.name", ""),
    (
        &["epochs", "num_epochs", "num_train_epochs"],
        "run.samples",
        " It counts samples: epochs times those of the dataset.",
    ),
    (&["steps", "max_steps", "max_train_steps"], "run.samples", " It counts samples: steps times run.batch_size."),
    (&["mixed_precision", "dtype", "amp"], "run.precision", ""),
    (&["train_batch_size"], "run.batch_size", ""),
    (&["resolution", "image_size", "size"], "objective.resolution", ""),
    (&["resolution", "size"], "model.vision.image_size", ""),
    (&["flip", "hflip", "random_flip"], "data.augment.flip", " A probability, such as 0.5."),
];

/// The key elsewhere in the recipe that a usual name stands for, and what else to know of it. `objective` and `model` have other
/// keys in each task, and only those that the recipe sets are named.
fn elsewhere(table: &Table, name: &str) -> Option<(&'static str, &'static str)> {
    let shared = |key: &str| {
        let first = key.split('.').next().unwrap_or_default();
        ["optimizer", "run", "data"].contains(&first) && table.get(first).is_some_and(Value::is_table)
    };
    let fits = |key: &str| (shared(key) && table.contains_key("kind")) || at(table, key).is_some();
    ELSEWHERE.iter().find(|(names, key, _)| names.contains(&name) && fits(key)).map(|(_, key, note)| (*key, *note))
}

/// The dotted keys of a table and of those inside it.
fn dotted_keys(table: &Table, prefix: &str) -> Vec<String> {
    let keys = table.iter().flat_map(|(key, value)| {
        let path = join(prefix, key);
        let inside = value.as_table().map_or_else(Vec::new, |inner| dotted_keys(inner, &path));
        std::iter::once(path).chain(inside)
    });
    keys.collect()
}

/// The key elsewhere in the recipe that is called alike.
fn alike_elsewhere(table: &Table, unknown: &str, name: &str) -> Option<String> {
    const ALIKE: f64 = 0.8;
    let keys = dotted_keys(table, "").into_iter().filter(|key| {
        let inside = key.strip_prefix(unknown).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        !inside
    });
    let score = |key: &str| strsim::normalized_damerau_levenshtein(name, key.rsplit('.').next().unwrap_or_default());
    let scored = keys.map(|key| (score(&key), key)).filter(|(score, _)| *score >= ALIKE);
    // Of those that are equally alike, the outermost.
    let depth = |key: &str| key.matches('.').count();
    scored.max_by(|(a, key_a), (b, key_b)| a.total_cmp(b).then(depth(key_b).cmp(&depth(key_a)))).map(|(_, key)| key)
}

fn unknown_key(merged: &Merged, file: &str, parent: &str, name: &str, mut known: Vec<String>) -> RecipeError {
    const ALIKE: f64 = 0.5;
    let key = join(parent, name);
    // Serde leaves out the key by which it tells the forms of a table apart.
    let is_named = NAMED.iter().any(|(table, ..)| *table == parent);
    if is_named && !known.iter().any(|key| key == "name") {
        known.insert(0, "name".to_owned());
    }
    let renamed = RENAMED.iter().find(|(old, new)| *old == name && known.iter().any(|key| key == new));
    let scored = known.iter().map(|key| (strsim::normalized_damerau_levenshtein(name, key), key.as_str()));
    let nearest = scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    let here = renamed.map(|(_, new)| *new).or(nearest.map(|(_, near)| near)).map(|near| join(parent, near));
    // Tables of tables have settings of their own that are called the same.
    let usual = if parent.contains('.') { None } else { elsewhere(&merged.table, name) };
    let (nearest, note) = match (usual, here) {
        (Some((key, note)), None) => (Some(key.to_owned()), note),
        (_, Some(here)) => (Some(here), ""),
        (None, None) => (alike_elsewhere(&merged.table, &key, name), ""),
    };
    RecipeError::UnknownKey { origin: merged.origin(&key, file), nearest, note, key, known }
}

/// A key that is missing: in the recipe, or beside the override that is alone in setting keys of its table.
fn missing_key(merged: &Merged, file: &str, path: &str, name: &str) -> RecipeError {
    let key = join(path, name);
    let inside = merged.origins.iter().filter(|(known, _)| known.starts_with(&format!("{path}.")));
    let overrides: Option<Vec<&String>> = inside
        .map(|(_, origin)| match origin {
            Origin::Override(text) => Some(text),
            Origin::File { .. } => None,
        })
        .collect();
    match overrides.and_then(|texts| texts.first().copied()) {
        Some(text) => RecipeError::MissingBeside { key, table: path.to_owned(), text: text.clone() },
        None => RecipeError::MissingKey { key, file: file.to_owned() },
    }
}

/// Turns serde's message and path into an error with the full key and where it was written.
fn explain(merged: &Merged, file: &str, path: &str, message: &str) -> RecipeError {
    // The key that toml says below its message is the last part of the path.
    let message = message.split("\nin `").next().unwrap_or_default().trim();
    let path = if path == "." { "" } else { path };
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    if message.starts_with("unknown field") {
        let name = quoted.next().unwrap_or_default();
        let key = locate(&merged.table, path, &name);
        let parent = key.strip_suffix(name.as_str()).unwrap_or_default().trim_end_matches('.');
        return unknown_key(merged, file, parent, &name, quoted.collect());
    }
    if message.starts_with("missing field") {
        let name = quoted.next().unwrap_or_default();
        return missing_key(merged, file, path, &name);
    }
    let inner = wrong_value(&merged.table, path, message);
    let path = inner.as_deref().unwrap_or(path);
    let origin = merged.origin(path, file);
    let message = format!("{}{}", plain(message), value_hint(message, &origin));
    let key = if path.is_empty() { "(the whole recipe)".to_owned() } else { path.to_owned() };
    RecipeError::InvalidValue { key, origin, message }
}

/// The key inside the table at `path` whose value a message of serde's is about: tables that are buffered hide it. None if no
/// value there, or more than one, is that of the message.
fn wrong_value(table: &Table, path: &str, message: &str) -> Option<String> {
    let whole = Value::Table(table.clone());
    let inside = lookup(&whole, path).filter(|value| value.is_table())?;
    let mut found = Vec::new();
    find_value(inside, path, message, &mut found);
    let first = found.pop()?;
    found.is_empty().then_some(first)
}

fn find_value(value: &Value, path: &str, message: &str, found: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            table.iter().for_each(|(key, value)| find_value(value, &join(path, key), message, found))
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            numbered.for_each(|(index, item)| find_value(item, &format!("{path}[{index}]"), message, found));
        }
        value if is_about(message, value) => found.push(path.to_owned()),
        _ => {}
    }
}

/// Whether serde's message says that it found this value.
fn is_about(message: &str, value: &Value) -> bool {
    if let (Some(rest), Value::String(text)) = (message.strip_prefix("unknown variant `"), value) {
        return rest.strip_prefix(text.as_str()).is_some_and(|rest| rest.starts_with('`'));
    }
    let Some(rest) = ["invalid type: ", "invalid value: "].into_iter().find_map(|start| message.strip_prefix(start))
    else {
        return false;
    };
    let described = match value {
        Value::String(text) => format!("string {text:?}"),
        Value::Integer(number) => format!("integer `{number}`"),
        // As serde writes it: never without a point.
        Value::Float(number) if number.fract() == 0.0 => format!("floating point `{number:.1}`"),
        Value::Float(number) => format!("floating point `{number}`"),
        Value::Boolean(value) => format!("boolean `{value}`"),
        _ => return false,
    };
    rest.strip_prefix(&described).is_some_and(|rest| rest.starts_with(','))
}

/// What to do about a wrong value, beyond found and expected.
fn value_hint(message: &str, origin: &Origin) -> String {
    if message.starts_with("unknown variant") {
        let mut quoted = message.split('`').skip(1).step_by(2);
        let wrong = quoted.next().unwrap_or_default();
        let scored = quoted.map(|known| (strsim::normalized_damerau_levenshtein(wrong, known), known));
        let nearest = scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score >= 0.5);
        return nearest.map(|(_, known)| format!("; did you mean `{known}`?")).unwrap_or_default();
    }
    if let Some(problem) = broken_table(origin) {
        return problem;
    }
    if is_huge_override(origin) {
        return format!("; {MOST}");
    }
    if matches!(origin, Origin::Override(_)) && message.contains("expected a string") {
        return "; quote it to make it a string, as in key='\"1\"'".to_owned();
    }
    String::new()
}

/// The numbers that TOML has, in words.
const MOST: &str = "whole numbers are at most 9223372036854775807";

/// True for a whole number beyond those of TOML, which was taken for text.
fn is_huge_override(origin: &Origin) -> bool {
    let Origin::Override(text) = origin else { return false };
    let value = text.split_once('=').map_or("", |(_, value)| value.trim());
    value.len() > 18 && value.bytes().all(|byte| byte.is_ascii_digit()) && value.parse::<i64>().is_err()
}

/// Why an override that was meant as a table or list is no TOML, and so was taken for text.
fn broken_table(origin: &Origin) -> Option<String> {
    let Origin::Override(text) = origin else { return None };
    let (_, value) = text.split_once('=')?;
    value.trim_start().starts_with(['{', '[']).then_some(())?;
    let whole = format!("value = {value}");
    let error = toml::from_str::<Table>(&whole).err()?;
    let place = error.span().and_then(|span| whole.get(span)).unwrap_or_default();
    let is_huge = place.len() > 18 && place.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
    let problem = match is_huge {
        true => MOST,
        false => error.message(),
    };
    let place = if place.is_empty() { String::new() } else { format!(", at `{place}`") };
    Some(format!("; as TOML it cannot be read{place}: {problem}"))
}

/// The full path of the unknown key `name` reported at `path`. Serde reports either the key's own path or that of a
/// table around it (tagged enums are buffered, which hides the rest); then the key is looked for inside.
fn locate(table: &Table, path: &str, name: &str) -> String {
    if path == name || path.ends_with(&format!(".{name}")) {
        return path.to_owned();
    }
    let whole = Value::Table(table.clone());
    let mut found = Vec::new();
    if let Some(inside) = lookup(&whole, path) {
        find_key(inside, path, name, &mut found);
    }
    // The nearest one: serde would have met an outer key first.
    found.into_iter().min_by_key(|key| key.matches(['.', '[']).count()).unwrap_or_else(|| join(path, name))
}

fn find_key(value: &Value, path: &str, name: &str, found: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let path = join(path, key);
                find_key(value, &path, name, found);
                if key == name {
                    found.push(path);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                find_key(item, &format!("{path}[{index}]"), name, found);
            }
        }
        _ => {}
    }
}

/// The value at a dotted path (`a.b[2].c`); the whole for an empty path.
fn lookup<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    parts.map(|part| part.trim_end_matches(']')).try_fold(value, |value, part| match value {
        Value::Table(table) => table.get(part),
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    fn one() -> u64 {
        1
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        name: String,
        #[serde(default = "one")]
        seed: u64,
        model: Model,
        optimizer: Optimizer,
        #[serde(default)]
        sources: Vec<Source>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
        #[serde(default)]
        loose: Loose,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Model {
        channels: Vec<usize>,
        learning_rate: f64,
        #[serde(default)]
        kind: Kind,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
    enum Optimizer {
        Adamw { betas: [f64; 2] },
        Sgd { momentum: f64 },
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        #[default]
        Small,
        Large,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Source {
        path: String,
        #[serde(default)]
        weight: f64,
    }

    /// Without `deny_unknown_fields`, as a foreign type might be.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default)]
    struct Loose {
        depth: u32,
    }

    const BASE: &str = r#"
name = "base"
[model]
channels = [1, 2, 3]
learning_rate = 1e-4 # per sample
[optimizer]
kind = "adamw"
betas = [0.9, 0.999]
"#;

    static RECIPES: &[(&str, &str)] = &[
        ("training/base", BASE),
        ("training/sd/child", "base = \"../base\"\nname = \"child\"\n[model]\nchannels = [9]\n"),
        ("training/sd/by_name", "base = \"training/sd/child\"\nseed = 5\n"),
        ("loop/a", "base = \"b\""),
        ("loop/b", "base = \"c.toml\""),
        ("loop/c", "base = \"loop/a\""),
    ];

    fn load(name: &str, overrides: &[&str]) -> Result<Resolved<Recipe>, RecipeError> {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        RecipeLoader::new().embedded(RECIPES).load(name, &overrides)
    }

    fn fails(name: &str, overrides: &[&str]) -> String {
        let error = load(name, overrides).unwrap_err();
        assert!(error.is_usage());
        error.to_string()
    }

    fn write(folder: &Path, name: &str, text: &str) -> String {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn tables_merge_arrays_are_replaced_and_overrides_win() {
        let overrides = ["model.learning_rate=3e-5", "model.channels=[64, 128]", "name=foo bar", "limit=7"];
        let resolved = load("training/sd/by_name", &overrides).unwrap();
        let recipe = &resolved.value;
        assert_eq!((recipe.name.as_str(), recipe.seed, recipe.limit), ("foo bar", 5, Some(7)));
        assert_eq!(recipe.model.channels, [64, 128]);
        assert_eq!(recipe.model.learning_rate, 3e-5);
        assert_eq!(resolved.sources.len(), 7);
        assert_eq!(resolved.sources[0], "built-in recipe training/base");
        assert_eq!(resolved.sources[3], "override model.learning_rate=3e-5");
        assert_eq!(load("training/sd/child", &[]).unwrap().value.model.channels, [9]);
    }

    #[test]
    fn the_resolved_text_is_complete_and_loads_to_the_same_value() {
        let folder = tempfile::tempdir().unwrap();
        let overrides = ["sources=[{path='a'}, {path='b', weight=0.1}]"];
        let resolved = load("training/sd/by_name", &overrides).unwrap();
        assert!(resolved.text.contains("kind = \"small\""), "{}", resolved.text);
        let path = folder.path().join("resolved.toml");
        resolved.save(&path).unwrap();
        let again: Resolved<Recipe> = RecipeLoader::new().load(path.to_str().unwrap(), &[]).unwrap();
        assert_eq!(again.value, resolved.value);
        assert_eq!(again.text, resolved.text);
        assert!(!resolved.save(&folder.path().join("no/r.toml")).unwrap_err().is_usage());
    }

    #[test]
    fn unknown_keys_in_files_are_named_with_file_line_and_suggestion() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "a.toml", &BASE.replace("learning_rate", "learning_rte"));
        let error = fails(&path, &[]);
        assert_eq!(
            error,
            format!("{path} line 5: unknown key `model.learning_rte`; did you mean `model.learning_rate`?")
        );
        let path = write(folder.path(), "b.toml", &format!("zzz = 1\n{BASE}"));
        let error = fails(&path, &[]);
        assert!(error.contains("b.toml line 1: unknown key `zzz`; the keys known there are name, seed"), "{error}");
        let path = write(folder.path(), "c.toml", &format!("{BASE}\n[[sources]]\npath='x'\n[[sources]]\npth='y'\n"));
        let error = fails(&path, &[]);
        assert!(error.contains("line 13: unknown key `sources[1].pth`; did you mean `sources[1].path`?"), "{error}");
        let path = write(folder.path(), "d.toml", &BASE.replace("betas", "beta"));
        let error = fails(&path, &[]);
        assert!(error.contains("line 8: unknown key `optimizer.beta`; did you mean `optimizer.betas`?"), "{error}");
    }

    #[test]
    fn an_unknown_key_in_a_base_is_blamed_on_the_base() {
        let folder = tempfile::tempdir().unwrap();
        let base = write(folder.path(), "deep/base.toml", &format!("{BASE}\n[loose]\ndpth = 2\n"));
        let child = write(folder.path(), "child.toml", "base = \"deep/base\"\nname = \"x\"\n");
        let error = fails(&child, &[]);
        assert_eq!(error, format!("{base} line 11: unknown key `loose.dpth`; did you mean `loose.depth`?"));
    }

    #[test]
    fn unknown_keys_in_overrides_are_blamed_on_the_override() {
        let error = fails("training/base", &["model.chanels=[1]"]);
        let expected = "override `model.chanels=[1]`: unknown key `model.chanels`; did you mean `model.channels`?";
        assert_eq!(error, expected);
        let error = fails("training/base", &["loose.deph=1"]);
        assert!(error.starts_with("override `loose.deph=1`: unknown key `loose.deph`"), "{error}");
        let error = fails("training/base", &["optimizer.betaz=[1.0,1.0]"]);
        assert!(error.starts_with("override `optimizer.betaz=[1.0,1.0]`: unknown key `optimizer.betaz`"), "{error}");
    }

    #[test]
    fn wrong_types_name_key_origin_and_expectation() {
        let error = fails("training/base", &["model.learning_rate=fast"]);
        assert_eq!(
            error,
            "override `model.learning_rate=fast`: key `model.learning_rate`: \
             instead of \"fast\" it takes a number, such as 0.5"
        );
        let error = fails("training/base", &["model.channels=[1,-2]"]);
        assert!(
            error.contains(
                "key `model.channels[1]`: instead of -2 it takes a whole number that is not negative, such as 4"
            ),
            "{error}"
        );
        let error = fails("training/base", &["name=3"]);
        assert!(error.contains("it takes text in quotes, such as \"name\"; quote it"), "{error}");
        let error = fails("training/base", &["model={ channels = [1, 99999999999999999999] }"]);
        assert!(
            error.contains("as TOML it cannot be read, at `99999999999999999999`: whole numbers are at most"),
            "{error}"
        );
        let error = fails("training/base", &["seed=18446744073709551615"]);
        assert!(error.ends_with("; whole numbers are at most 9223372036854775807"), "{error}");
        let error = fails("training/base", &["model.kind=lage"]);
        assert!(error.contains("did you mean `large`?"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "t.toml", "base = 'training/base'\nseed = 'x'\n");
        assert!(
            fails(&path, &[])
                .starts_with(&format!("{path} line 2: key `seed`: instead of \"x\" it takes a whole number"))
        );
        let path = write(folder.path(), "m.toml", "name = 'x'\n[model]\nchannels = []\n");
        let error = fails(&path, &[]);
        assert!(error.contains("m.toml: the key `model.learning_rate` is missing"), "{error}");
    }

    #[test]
    fn what_is_said_in_another_way_takes_the_place_of_a_base() {
        static LAYERS: &[(&str, &str)] = &[
            (
                "base",
                "[data]\npath = \"a\"\nthreads = 2\n[optimizer]\ndecay = \"cosine\"\nwarmup_samples = 5\nbeta2 = 0.9\n\
                 weight_decay = 0.1\n[ema]\nhalf_life = 5\n",
            ),
            ("sources", "base = \"base\"\n[data]\nsources = [{ path = \"b\" }]\n"),
            ("path", "base = \"sources\"\n[data]\npath = \"c\"\n"),
            ("both", "base = \"base\"\n[data]\npath = \"c\"\nsources = [{ path = \"b\" }]\n"),
            (
                "named",
                "base = \"base\"\n[optimizer]\nname = \"sgd\"\n[optimizer.schedule]\nname = \"step\"\n[ema]\nname = \"constant\"\n",
            ),
            ("same", "base = \"base\"\n[ema]\nname = \"half_life\"\n[optimizer]\nname = \"adamw\"\n"),
            ("results", "[hooks.benchmark]\nevery = 16\nfigures = [{ samples = 16 }]\n"),
        ];
        let table = |name: &str, overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
            RecipeLoader::new().embedded(LAYERS).load::<Table>(name, &overrides).unwrap().value
        };
        let found = table("results", &["hooks.benchmark={ every = 8, path = 'x' }"]);
        let benchmark = at(&found, "hooks.benchmark").unwrap().as_table().unwrap();
        assert_eq!(benchmark.keys().collect::<Vec<_>>(), ["every", "path"]);
        let has = |table: &Table, key: &str| at(table, key).is_some();
        for found in [table("sources", &[]), table("base", &["data.sources=[{path='b'}]"])] {
            assert!(has(&found, "data.sources") && !has(&found, "data.path") && has(&found, "data.threads"));
        }
        assert!(!has(&table("path", &[]), "data.sources"));
        assert!(["data.sources", "data.path"].iter().all(|key| has(&table("both", &[]), key)), "one place says both");
        let found = table("named", &[]);
        for gone in ["optimizer.decay", "optimizer.warmup_samples", "optimizer.beta2", "ema.half_life"] {
            assert!(!has(&found, gone), "{gone}");
        }
        assert!(has(&found, "optimizer.weight_decay"));
        let found = table("same", &[]);
        assert!(["optimizer.beta2", "ema.half_life"].iter().all(|key| has(&found, key)));
    }

    #[test]
    fn keys_of_a_schedule_change_the_one_that_the_recipe_has() {
        static LAYERS: &[(&str, &str)] = &[
            ("earlier", "[optimizer]\ndecay = \"cosine\"\nwarmup_samples = 2000\n"),
            ("warm", "[optimizer]\nwarmup_samples = 7\n"),
            ("child", "base = \"earlier\"\n[optimizer.schedule]\nwarmup = 100\n"),
            ("steps", "[optimizer.schedule]\nname = \"linear\"\nwarmup = { steps = 5 }\n"),
            ("none", "[optimizer]\nlearning_rate = 1.0\n"),
        ];
        #[derive(Debug, Serialize, Deserialize)]
        struct Whole {
            optimizer: crate::optim::OptimizerSettings,
        }
        let load = |name: &str, overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
            RecipeLoader::new().embedded(LAYERS).load::<Whole>(name, &overrides)
        };
        for (name, overrides, schedule) in [
            ("earlier", &["optimizer.schedule.warmup=100"][..], "{ name = 'cosine', warmup = 100 }"),
            ("earlier", &["optimizer.schedule.warmup={steps=10}"], "{ name = 'cosine', warmup = { steps = 10 } }"),
            ("earlier", &["optimizer.schedule.final=0.1"], "{ name = 'cosine', warmup = 2000, final = 0.1 }"),
            ("earlier", &["optimizer.schedule.name=linear"], "{ name = 'linear' }"),
            ("warm", &["optimizer.schedule.warmup=9"], "{ name = 'constant', warmup = 9 }"),
            ("child", &[], "{ name = 'cosine', warmup = 100 }"),
            ("child", &["optimizer.schedule.final=0.5"], "{ name = 'cosine', warmup = 100, final = 0.5 }"),
            ("steps", &["optimizer.schedule.warmup={samples=3}"], "{ name = 'linear', warmup = 3 }"),
        ] {
            let found =
                load(name, overrides).unwrap_or_else(|error| panic!("{name}: {error}")).value.optimizer.schedule;
            let wanted: Whole = toml::from_str(&format!("[optimizer]\nschedule = {schedule}")).unwrap();
            assert_eq!(found, wanted.optimizer.schedule, "{name} {overrides:?}");
        }
        let error = load("none", &["optimizer.schedule.warmup=9"]).unwrap_err().to_string();
        assert!(
            error.starts_with("override `optimizer.schedule.warmup=9`: the recipe has no `optimizer.schedule`"),
            "{error}"
        );
        assert!(error.ends_with("pass `optimizer.schedule.name=value`, too"), "{error}");
        let error = load("earlier", &["optimizer.schedule.fina=0.1"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `optimizer.schedule.final`?"), "{error}");
    }

    #[test]
    fn tables_that_hide_their_keys_are_looked_into() {
        static LAYERS: &[(&str, &str)] = &[(
            "whole",
            "[optimizer]\nlearning_rate = 1.0\n[ema]\nname = \"constant\"\n[mlperf]\nbenchmark = \"stable_diffusion\"\n\
             division = \"closed\"\norg = \"a\"\nplatform = \"b\"\nstatus = \"onprem\"\n",
        )];
        #[derive(Debug, Serialize, Deserialize)]
        struct Whole {
            optimizer: crate::optim::OptimizerSettings,
            ema: crate::optim::EmaSettings,
            mlperf: crate::mlperf::MlperfSettings,
        }
        for (wrong, part) in [
            ("optimizer.name=adam", "key `optimizer.name`: instead of `adam` it takes `adamw` or `sgd`"),
            ("optimizer.beta1=fast", "key `optimizer.beta1`: instead of \"fast\" it takes a number"),
            ("optimizer.schedule.name=cosin", "key `optimizer.schedule.name`: instead of `cosin`"),
            ("ema.name=constnt", "key `ema.name`: instead of `constnt`"),
            ("ema.decay=true", "key `ema.decay`: instead of true it takes a number"),
            ("mlperf.division=clsed", "key `mlperf.division`: instead of `clsed`"),
            ("mlperf.enabled=1", "key `mlperf.enabled`: instead of 1 it takes true or false"),
            ("optimizer.nam=adamw", "did you mean `optimizer.name`?"),
            ("optimizer.zzz=1", "the keys known there are name, "),
            ("ema.zzz=1", "`ema.zzz`; the keys known there are "),
        ] {
            let loaded = RecipeLoader::new().embedded(LAYERS).load::<Whole>("whole", &[wrong.to_owned()]);
            let error = loaded.unwrap_err().to_string();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }

    #[test]
    fn overrides_of_one_command_line_do_not_drop_each_other() {
        static LAYERS: &[(&str, &str)] = &[(
            "base",
            "[data]\npath = \"a\"\n[optimizer]\nlearning_rate = 1.0\nwarmup_samples = 5\n[ema]\nname = \"half_life\"\n\
             half_life = 5\n",
        )];
        let check = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
            RecipeLoader::new().embedded(LAYERS).check_overrides("base", &overrides)
        };
        for [first, second] in [
            ["data.path=b", "data.path=c"],
            ["data.path=b", "data.sources=[{path='c'}]"],
            ["data.sources=[{path='c'}]", "data.path=b"],
            ["data={path='b'}", "data.path=c"],
            ["data.path=b", "data={path='c'}"],
            ["data.path=b", "data=c"],
            ["optimizer.learning_rate=2.0", "optimizer.base_learning_rate=1.0"],
            ["ema.half_life=7", "ema.name=constant"],
            ["optimizer.schedule.warmup={steps=1}", "optimizer.schedule.warmup={samples=1}"],
            ["optimizer.warmup_samples=7", "optimizer.schedule.warmup=9"],
        ] {
            let error = check(&["data.threads=1", first, second]).unwrap_err();
            assert!(error.is_usage());
            let expected = format!(
                "the overrides `{first}` and `{second}` contradict each other, and one would be dropped: leave one of them out"
            );
            assert_eq!(error.to_string(), expected);
        }
        for overrides in [
            &["data.path=b", "data.path=b"][..],
            &["data.path=b", "data.threads=2"],
            &["data={path='b'}", "data.threads=2"],
            &["ema.name=constant", "ema.decay=0.5"],
            &["optimizer.schedule.warmup=9", "optimizer.schedule.name=linear"],
            &["data.sources=[{path='c'}]"],
        ] {
            assert!(check(overrides).is_ok(), "{overrides:?}");
        }
        assert!(check(&["data.path"]).unwrap_err().to_string().contains("there is no `=`"));
    }

    #[test]
    fn keys_at_a_wrong_place_are_told_the_right_one() {
        static RECIPE: &[(&str, &str)] = &[(
            "line",
            "kind = \"autoencoder\"\n[data]\npath = \"x\"\n[model]\n[objective]\nresolution = 32\nreconstruction = \"l1\"\n\
             kl_weight = 0.1\n[optimizer]\nlearning_rate = 1e-3\n[run]\nseed = 1\nsamples = 16\nbatch_size = 4\nlog_every = 4\n\
             checkpoint_every = 8\n",
        )];
        for (wrong, right) in [
            ("learning_rate=1e-4", "optimizer.learning_rate"),
            ("lr=1e-4", "optimizer.learning_rate"),
            ("optimizer.lr=1e-4", "optimizer.learning_rate"),
            ("resolution=64", "objective.resolution"),
            ("run.epochs=5", "run.samples"),
            ("data.flip=0.5", "data.augment.flip"),
            ("mixed_precision=bf16", "run.precision"),
            ("batch_size=5", "run.batch_size"),
            ("bach_size=5", "run.batch_size"),
        ] {
            let loader = RecipeLoader::new().embedded(RECIPE);
            let load = loader.load::<crate::tasks::autoencoder::AutoencoderRecipe>("line", &[wrong.to_owned()]);
            let error = load.unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean `{right}`?")), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_recipe_says_what_it_is_for_and_passes_nothing_of_it_on() {
        static TOLD: &[(&str, &str)] = &[
            ("base", "x = 1\n[about]\npurpose = \"to try\"\ntime = \"1 min\"\n"),
            ("child", "base = \"base\""),
            ("wrong", "x = 1\n\n[about]\ntime = 3\n"),
        ];
        let loader = RecipeLoader::new().embedded(TOLD);
        let about = loader.about("base").unwrap().unwrap();
        assert_eq!((about.purpose.as_str(), about.size.as_str(), about.time.as_str()), ("to try", "", "1 min"));
        assert_eq!(loader.about("child").unwrap(), None);
        assert!(!loader.load::<Table>("child", &[]).unwrap().value.contains_key("about"));
        let error = loader.load::<Table>("wrong", &[]).unwrap_err().to_string();
        assert!(error.contains("line 3: key `about`: instead of 3 it takes text in quotes"), "{error}");
    }

    #[test]
    fn the_runs_folder_stands_in_paths() {
        static PATHS: &[(&str, &str)] = &[(
            "paths",
            "a = \"{out}/x\"\nb = [\"{out}\", \"{outer}\", \"x{out}/y\"]\n[c]\nd = \"{out} of it\"\ne = \"{out}/prepared/{out}\"\n",
        )];
        let loader = RecipeLoader::new().embedded(PATHS);
        let load = |loader: &RecipeLoader| loader.load::<Table>("paths", &["f=\"{out}/z\"".to_owned()]).unwrap().value;
        let plain = load(&loader);
        assert_eq!(plain["a"].as_str(), Some("{out}/x"));
        let put = load(&loader.out(Path::new("runs/a b")));
        assert_eq!((put["a"].as_str(), put["f"].as_str()), (Some("runs/a b/x"), Some("runs/a b/z")));
        let texts: Vec<&str> = put["b"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(texts, ["runs/a b", "{outer}", "x{out}/y"]);
        assert_eq!(put["c"]["d"].as_str(), Some("{out} of it"));
        assert_eq!(put["c"]["e"].as_str(), Some("runs/a b/prepared/{out}"));
    }

    #[test]
    fn a_table_inside_may_have_a_base_of_its_own() {
        static INSIDE: &[(&str, &str)] = &[
            ("judge", "base = \"ways\"\nimages = 3\n[about]\npurpose = \"to try\"\ntime = \"1 min\"\n"),
            ("ways", "images = 9\n[sampler]\nsteps = 50\nname = \"ddim\"\n"),
            (
                "run",
                "name = \"r\"\n[hooks.judge]\nevery = 8\n[hooks.judge.recipe]\nbase = \"judge\"\nsampler = { steps = 2 }\n",
            ),
            ("child", "base = \"run\"\n[hooks.judge.recipe]\nimages = 4\n"),
            ("circle", "[inner]\nbase = \"circle\"\n"),
            ("number", "[inner]\nbase = 3\n"),
            ("nobody", "[inner]\nbase = \"jugde\"\n"),
        ];
        let load = |name: &str, overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
            RecipeLoader::new().embedded(INSIDE).load::<Table>(name, &overrides).map(|resolved| resolved.value)
        };
        let recipe =
            |name: &str, overrides: &[&str]| load(name, overrides).unwrap()["hooks"]["judge"]["recipe"].clone();
        let whole = |images: i64, steps: i64| {
            toml::from_str::<Table>(&format!("images = {images}\nsampler = {{ steps = {steps}, name = \"ddim\" }}\n"))
                .unwrap()
        };
        assert_eq!(recipe("run", &[]), Value::Table(whole(3, 2)));
        assert_eq!(recipe("child", &[]), Value::Table(whole(4, 2)));
        assert_eq!(recipe("child", &["hooks.judge.recipe.sampler.steps=7"]), Value::Table(whole(4, 7)));
        assert_eq!(recipe("child", &["hooks.judge.recipe.base=ways"]), Value::Table(whole(9, 50)));
        let error = |name: &str| load(name, &[]).unwrap_err().to_string();
        assert!(error("circle").contains("inherit in a circle"), "{}", error("circle"));
        assert!(error("number").contains("`base` must be a string"), "{}", error("number"));
        assert!(error("nobody").contains("did you mean `judge`"), "{}", error("nobody"));
    }

    #[test]
    fn circles_name_the_chain() {
        let error = fails("loop/a", &[]);
        let a = "built-in recipe loop/a";
        assert!(error.contains(&format!("{a} -> built-in recipe loop/b -> built-in recipe loop/c -> {a}")), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "self.toml", "base = './self'");
        assert!(fails(&path, &[]).contains("inherit in a circle"));
    }

    #[test]
    fn unknown_recipes_come_with_suggestions() {
        let error = fails("training/sd/chlid", &[]);
        assert!(
            error.starts_with("there is no recipe `training/sd/chlid`; did you mean `training/sd/child`"),
            "{error}"
        );
        let error = fails("sd", &[]);
        assert!(
            error.contains("did you mean `training/sd/child`") && error.ends_with("`calotype recipes` lists all"),
            "{error}"
        );
        assert!(fails("training/", &[]).contains("`training/base`"));
        let error = fails("missing.toml", &[]);
        assert!(
            error.starts_with("there is no file `missing.toml`") && error.contains("`calotype recipes`"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "x.toml", "base = 'training/bsae'");
        let error = fails(&path, &[]);
        assert!(error.contains("(the `base` of ") && error.contains("did you mean `training/base`"), "{error}");
        write(folder.path(), "deep/y.toml", BASE);
        let loader = RecipeLoader::new().folder(folder.path());
        assert_eq!(loader.names(), ["deep/y", "x"]);
        assert_eq!(loader.load::<Recipe>("deep/y", &[]).unwrap().value.name, "base");
    }

    #[test]
    fn malformed_input_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        assert!(fails("training/base", &["seed"]).contains("there is no `=`"));
        assert!(fails("training/base", &["=3"]).contains("not a TOML key"));
        assert!(fails("training/base", &["a b=3"]).contains("not a TOML key"));
        let path = write(folder.path(), "x.toml", "name = \n");
        let error = fails(&path, &[]);
        assert!(error.contains("x.toml: not valid TOML") && error.contains("line 1"), "{error}");
        let path = write(folder.path(), "y.toml", "base = 3\n");
        assert!(fails(&path, &[]).contains("must be a string, the name or relative path of one recipe, not integer"));
    }

    #[test]
    fn override_values_are_toml_or_strings() {
        for (text, expected) in [
            ("1e-4", Value::Float(1e-4)),
            ("true", Value::Boolean(true)),
            ("[1, 2]", Value::Array(vec![1.into(), 2.into()])),
            ("foo", Value::from("foo")),
            ("", Value::from("")),
            ("2024-06-01", Value::from("2024-06-01")),
            ("a=b", Value::from("a=b")),
            ("1\nother = 2", Value::from("1\nother = 2")),
        ] {
            assert_eq!(override_value(text), expected, "{text}");
        }
    }
}
