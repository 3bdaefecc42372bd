//! `completions` and `man`: what a shell and `man` know of the command line.

use crate::help;
use anyhow::{Context, Result};
use clap::Args;
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
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    super::print(String::from_utf8_lossy(&text).trim_end())
}

/// Writes `calotype.1` and one page for each command.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let folder = &args.folder;
    let failed = || format!("cannot write man pages to {}; choose another folder", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    clap_mangen::generate_to(help::command(), folder).with_context(failed)?;
    super::print(&format!("man pages in {}; see one with: man {}/calotype.1", folder.display(), folder.display()))
}
