//! `recipes`: what is built in, and for what.

use super::{print, recipe_loader};
use anyhow::Result;
use calotype_train::RecipeLoader;
use calotype_train::recipe::About;
use calotype_train::tasks::TASKS;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct RecipesArgs {
    /// A recipe to show with everything it inherits; all of them are listed if absent.
    name: Option<String>,
}

/// Lists all recipes, or shows one.
pub(crate) fn recipes(args: &RecipesArgs) -> Result<()> {
    let loader = recipe_loader();
    match &args.name {
        None => print(&list(&loader)),
        Some(name) => print(loader.load::<toml::Table>(name, &[])?.text.trim_end()),
    }
}

/// One line for each recipe: name, size, memory, time, purpose.
fn list(loader: &RecipeLoader) -> String {
    let rows: Vec<[String; 5]> = loader.names().into_iter().map(|name| row(loader, name)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [name, size, memory, time] = [0, 1, 2, 3].map(width);
    let line = |row: &[String; 5]| {
        let [a, b, c, d, purpose] = row;
        format!("{a:name$}  {b:size$}  {c:memory$}  {d:time$}  {purpose}").trim_end().to_owned()
    };
    let head = format!("{:name$}  {:size$}  {:memory$}  {:time$}  PURPOSE", "# RECIPE", "SIZE", "MEMORY", "TIME");
    let lines: Vec<String> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    lines.join("\n")
}

fn row(loader: &RecipeLoader, name: String) -> [String; 5] {
    let About { purpose, size, memory, time } = loader.about(&name).ok().flatten().unwrap_or_default();
    let purpose = if purpose.is_empty() { task(loader, &name) } else { purpose };
    [name, size, memory, time, purpose]
}

/// What a recipe that does not say its purpose trains.
fn task(loader: &RecipeLoader, name: &str) -> String {
    let kind = loader.load::<toml::Table>(name, &[]).ok().and_then(|recipe| recipe.value.get("kind").cloned());
    let task = kind.and_then(|kind| TASKS.iter().find(|task| kind.as_str() == Some(task.kind)));
    task.map(|task| format!("trains {}", task.about)).unwrap_or_default()
}
