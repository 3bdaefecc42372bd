//! `completions` and `man`: what a shell and `man` know of the command line.

use crate::commands::RECIPES;
use crate::help;
use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder to write to, such as ~/.local/share/man/man1.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions of a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut command = help::command();
    // Only bash completes the names of files beside these: the other shells would offer nothing else.
    if args.shell == clap_complete::Shell::Bash {
        command = with_recipes(command);
    }
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    super::print(String::from_utf8_lossy(&text).trim_end())
}

/// The command line with the built-in recipes as values, where one is named.
fn with_recipes(command: Command) -> Command {
    let names = |beginning: &'static str| {
        let names = RECIPES.iter().map(|(name, _)| *name).filter(move |name| name.starts_with(beginning));
        move |argument: Arg| argument.value_parser(PossibleValuesParser::new(names.clone()))
    };
    let takes = |argument: &'static str, beginning| move |command: Command| command.mut_arg(argument, names(beginning));
    command
        .mut_subcommand("train", takes("recipe", "training/"))
        .mut_subcommand("recipes", takes("name", ""))
        .mut_subcommand("data", move |data| data.mut_subcommand("precache", takes("recipe", "data/precache/")))
}

/// Writes `calotype.1` and one page for each command.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let folder = &args.folder;
    let failed = || format!("cannot write man pages to {}; choose another folder", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(help::command(), folder).with_context(failed)?;
    super::print(&format!("man pages in {}; see one with: man {}/calotype.1", folder.display(), folder.display()))
}
