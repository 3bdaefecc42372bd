//! Paths of recipes, compared as what they name: one folder has many spellings, and moves together with what is in it.

use super::RECIPE;
use std::path::{Path, PathBuf, absolute};
use toml::{Table, Value};

/// Keys of recipes whose texts are paths; `*` stands for any key or place in a list.
const PATHS: [&str; 13] = [
    "data.path",
    "data.sources.*.path",
    "data.source.remote.cache",
    "init_from",
    "init_from.path",
    "init_from.parts.*",
    "autoencoder",
    "text.model",
    "hooks.evaluate.path",
    "hooks.benchmark.path",
    // Of precaching.
    "source",
    "out",
    "encoders.*.model",
];

/// A recipe that a run was begun with, with its paths spelled as in another one (`now`) where they name the same place for the
/// run in `folder`.
pub(super) fn respelled(begun: &Table, now: &Table, folder: &Path) -> Table {
    respelled_below(&mut Vec::new(), begun, now, folder)
}

fn respelled_below<'k>(keys: &mut Vec<&'k str>, begun: &'k Table, now: &Table, folder: &Path) -> Table {
    let mut spelled = Table::new();
    for (key, value) in begun {
        keys.push(key);
        let value = now.get(key).map_or_else(|| value.clone(), |now| respelled_value(keys, value, now, folder));
        keys.pop();
        spelled.insert(key.clone(), value);
    }
    spelled
}

fn respelled_value<'k>(keys: &mut Vec<&'k str>, begun: &'k Value, now: &Value, folder: &Path) -> Value {
    match (begun, now) {
        (Value::Table(begun), Value::Table(now)) => Value::Table(respelled_below(keys, begun, now, folder)),
        (Value::Array(begun), Value::Array(all)) if begun.len() == all.len() => {
            keys.push("*");
            let items = begun.iter().zip(all).map(|(begun, now)| respelled_value(keys, begun, now, folder)).collect();
            keys.pop();
            Value::Array(items)
        }
        (Value::String(begun), Value::String(now)) if is_path(keys) && same_place(begun, now, folder) => {
            Value::String(now.clone())
        }
        _ => begun.clone(),
    }
}

fn is_path(keys: &[&str]) -> bool {
    PATHS.iter().any(|path| {
        let mut parts = path.split('.');
        keys.iter().all(|key| parts.next().is_some_and(|part| part == "*" || part == *key)) && parts.next().is_none()
    })
}

/// Whether two texts name the same place for the run in `folder`, which may have been moved since the first was written.
pub(super) fn same_place(begun: &str, now: &str, folder: &Path) -> bool {
    let elsewhere = |text: &str| text.contains("://");
    begun == now
        || !(elsewhere(begun) || elsewhere(now))
            && (whole(Path::new(begun)) == whole(Path::new(now))
                || moved_along(Path::new(begun), Path::new(now), folder))
}

/// A path from the root, without links, as far as there is something.
fn whole(path: &Path) -> PathBuf {
    let path = absolute(path).unwrap_or_else(|_| path.to_owned());
    let found =
        path.ancestors().find_map(|around| Some((around.canonicalize().ok()?, path.strip_prefix(around).ok()?)));
    found.map_or_else(|| path.clone(), |(around, rest)| around.join(rest))
}

/// Whether `now` lies in the run's folder or beside it, as `begun` did before both were moved: the steps from the common folder
/// are the same, and at the former places neither is left. Inside of the run's own folder, `now` may also be a copy: then `begun` lies in
/// the run that was copied.
fn moved_along(begun: &Path, now: &Path, folder: &Path) -> bool {
    let (now, folder) = (whole(now), whole(folder));
    let mut roots = [Some(folder.as_path()), folder.parent()].into_iter().flatten();
    roots.any(|root| {
        let (Ok(inside), Ok(own)) = (now.strip_prefix(root), folder.strip_prefix(root)) else { return false };
        let former = begun.ancestors().nth(inside.components().count());
        let left = |former: &Path| begun.exists() || former.join(own).join(RECIPE).exists();
        let copied = |former: &Path| root == folder && former.join(RECIPE).is_file();
        let follows = former.is_some_and(|former| copied(former) || !left(former));
        inside.components().next().is_some() && begun.ends_with(inside) && follows
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_place_are_the_same() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        ["a/shards", "b"].iter().for_each(|name| std::fs::create_dir_all(at(name)).unwrap());
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        let run = root.path().join("run");
        for (begun, now, same) in [
            ("x", "x", true),
            ("shards", "./shards", true),
            ("shards/", "shards", true),
            ("shards", "shard", false),
            (&at("a/shards"), &at("b/../a/shards"), true),
            (&at("a/shards"), &at("link/shards"), true),
            (&at("a/{0..3}.tar"), &at("link/./{0..3}.tar"), true),
            (&at("a/shards"), &at("b/shards"), false),
            ("https://a/x", "https://a/./x", false),
        ] {
            assert_eq!(same_place(begun, now, &run), same, "{begun} and {now}");
        }
        let here = std::env::current_dir().unwrap().join("shards").display().to_string();
        assert!(same_place("shards", &here, &run) && same_place(&here, "./shards", &run));
    }

    #[test]
    fn what_lies_in_a_run_or_beside_it_moves_with_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let text = |name: &str| at(name).display().to_string();
        let make = |name: &str| std::fs::create_dir_all(at(name)).unwrap();
        ["old/run", "old/shards"].iter().for_each(|name| make(name));
        std::fs::write(at("old/run").join(RECIPE), "").unwrap();
        std::fs::rename(at("old"), at("new")).unwrap();
        let same = |begun: &str, now: &str| same_place(&text(begun), &text(now), &at("new/run"));
        assert!(same("old/shards", "new/shards") && same("old/run/cache", "new/run/cache"));
        assert!(!same("old/shards", "new/other") && !same("old/x/shards", "new/y/shards"));
        assert!(!same("old/shards", "elsewhere/shards"), "moved, but not with the run");
        make("old/shards");
        assert!(!same("old/shards", "new/shards"), "the former data are still there");
        // A copy of a run has copies of what lies in it.
        make("old/run/cache");
        assert!(!same("old/run/cache", "new/run/cache"), "nothing says that this was a run");
        std::fs::write(at("old/run").join(RECIPE), "").unwrap();
        assert!(same("old/run/cache", "new/run/cache") && !same("old/run/cache", "new/run/other"));
        assert!(!same("old/shards", "new/shards"));
    }

    #[test]
    fn only_keys_of_paths_are_compared_as_paths() {
        let table = |text: &str| -> Table { toml::from_str(text).unwrap() };
        let begun = table(
            "init_from = 'm'\nnote = 'x'\n[data]\nsources = [{ path = 'a' }, { path = 'b' }]\n[text]\nmodel = 'c'\n",
        );
        let now = table(
            "init_from = './m'\nnote = './x'\n[data]\nsources = [{ path = './a' }, { path = 'c' }]\n[text]\nmodel = 'd/../c'\n",
        );
        let found = respelled(&begun, &now, Path::new("run"));
        let wanted = table(
            "init_from = './m'\nnote = 'x'\n[data]\nsources = [{ path = './a' }, { path = 'b' }]\n[text]\nmodel = 'c'\n",
        );
        assert_eq!(found, wanted);
    }
}
