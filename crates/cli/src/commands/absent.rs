//! Whether a failure is that something is not there which the command line names: then the command line is at fault.

use super::message;
use clap::Command;
use std::io;
use std::path::Path;

/// True if the system found nothing at a path, the message tells it, and it is one of the command line's. What was there when the
/// work began and is lost since is no fault of the command line.
pub(super) fn is_named(error: &anyhow::Error, command: &Command, arguments: &[String]) -> bool {
    let is_not_found = |cause: &io::Error| cause.kind() == io::ErrorKind::NotFound;
    if !error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(is_not_found) {
        return false;
    }
    let told = message(error);
    values(command, arguments).iter().any(|value| !Path::new(value).exists() && holds(&told, value))
}

/// What a command line says beside the names of commands and flags, and but for where results go, which need not be there; the
/// arguments begin with the program's name.
fn values<'a>(command: &Command, arguments: &'a [String]) -> Vec<&'a str> {
    let (mut at, mut values) = (command, Vec::new());
    let mut before = "";
    for argument in arguments.iter().skip(1) {
        let is_output = std::mem::replace(&mut before, argument.as_str()) == "--out";
        if let Some(below) = at.find_subcommand(argument) {
            at = below;
            continue;
        }
        let (key, value) = argument.split_once('=').unwrap_or((argument.as_str(), ""));
        if is_output || matches!(key, "--out" | "out") {
            continue;
        }
        if !argument.starts_with('-') {
            values.push(argument.as_str());
        }
        values.push(value.trim_matches(['"', '\'']));
    }
    values.retain(|value| !value.is_empty());
    values
}

/// Whether a text names a path, or what would lie below it: what is wrong with it stands behind a colon.
fn holds(text: &str, path: &str) -> bool {
    let is_of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    text.match_indices(path).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + path.len()..].chars().next();
        before.is_none_or(|c| !is_of_name(c)) && after.is_some_and(|c| matches!(c, ':' | '/' | '`'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    fn command() -> Command {
        Command::new("calotype")
            .subcommand(Command::new("data").subcommand(Command::new("check")))
            .subcommand(Command::new("evaluate"))
    }

    /// The error of a path at which the system found nothing.
    fn not_found(told: &str) -> anyhow::Error {
        Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context(told.to_owned()).unwrap_err()
    }

    fn is_fault(error: &anyhow::Error, line: &str) -> bool {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        is_named(error, &command(), &arguments)
    }

    #[test]
    fn what_the_command_line_names_and_is_not_there() {
        for (told, line, expected) in [
            ("cannot read none.txt", "calotype evaluate --texts none.txt", true),
            ("cannot read none.txt", "calotype evaluate --texts=none.txt", true),
            ("cannot read nowhere/list", "calotype evaluate list=\"nowhere\"", true),
            ("cannot read nowhere/list", "calotype evaluate nowhere/list", true),
            // Another path, a part of a name, a command's own name, and what is there.
            ("cannot read runs/recipe.toml", "calotype evaluate none.txt", false),
            ("cannot read runs/none.txt", "calotype evaluate none.txt", false),
            ("cannot read nowhere.txt", "calotype evaluate nowhere", false),
            ("cannot check list", "calotype data check shards", false),
            ("cannot read list", "calotype evaluate samples=2 steps=entity", false),
            ("cannot read /none/list", "calotype evaluate /", false),
            // Where results go.
            ("cannot write runs/x", "calotype evaluate --out runs/x", false),
            ("cannot write runs/x", "calotype evaluate --out=runs/x", false),
            ("cannot write runs/x", "calotype evaluate out=runs/x", false),
        ] {
            assert_eq!(is_fault(&not_found(told), line), expected, "{told}: {line}");
        }
        assert!(!is_fault(&anyhow!("cannot read none.txt: no permission"), "calotype evaluate none.txt"));
    }
}
