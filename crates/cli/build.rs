//! Puts every recipe of `recipes/` and the commit into the binary.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
    Ok(())
}

/// The commit of the source, where it is a git checkout.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    // Both change with the commit: the branch that is checked out, and where it is.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) =
            git(&["rev-parse", "--git-path", name]).map(|path| root.join(path)).filter(|path| path.exists())
        {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "not known".to_owned())
}

/// Folds functions of the same machine code into one, where the linker is LLD, which it is on this target by default: 2 MB of
/// the program.
fn fold_equal_functions() {
    let named = |name: &str| env::var(name).unwrap_or_default();
    if named("TARGET") == "x86_64-unknown-linux-gnu" && !named("CARGO_ENCODED_RUSTFLAGS").contains("link") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../recipes").canonicalize()?;
    println!("cargo::rerun-if-changed={}", root.display());
    println!("cargo::rustc-env=CALOTYPE_COMMIT={}", commit(&root));
    fold_equal_functions();
    let mut paths = Vec::new();
    collect(&root, &mut paths)?;
    paths.sort();
    let mut code = String::from("pub(crate) const RECIPES: &[(&str, &str)] = &[\n");
    for path in paths {
        let name = path.strip_prefix(&root)?.with_extension("");
        let name = name.to_str().ok_or("a recipe's path is not UTF-8")?.replace('\\', "/");
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(code, "    ({name:?}, include_str!({path:?})),")?;
    }
    code.push_str("];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("recipes.rs"), code)?;
    Ok(())
}
