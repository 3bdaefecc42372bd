//! Slurm's short forms of lists (`man srun`, OUTPUT ENVIRONMENT VARIABLES).

/// Steps from here on are no `srun`: the interactive, batch and external ones (`slurm.h`, `SLURM_INTERACTIVE_STEP`).
pub(super) const FIRST_SPECIAL_STEP: u64 = 0xffff_fffa;

/// Tasks on each node of a step, such as `2(x3),1`.
pub(super) const TASKS_PER_NODE: &str = "SLURM_STEP_TASKS_PER_NODE";

/// The number of tasks on a node, by its number in the step.
///
/// # Errors
/// What is wrong with the list.
pub(super) fn tasks_on_node(list: &str, node: usize) -> Result<usize, String> {
    let malformed = || "it takes numbers of tasks with repetitions, such as 2(x3),1".to_owned();
    let mut before = 0usize;
    for item in list.split(',') {
        let (tasks, times) = match item.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')').ok_or_else(malformed)?),
            None => (item, "1"),
        };
        let (tasks, times): (usize, usize) =
            (tasks.parse().map_err(|_| malformed())?, times.parse().map_err(|_| malformed())?);
        before = before.saturating_add(times);
        if node < before {
            return Ok(tasks);
        }
    }
    Err(format!("it has {before} nodes, but SLURM_NODEID={node}"))
}

/// The first host of a list such as `node[001-004,007],login`.
///
/// # Errors
/// What is wrong with the list.
pub(super) fn first_host(list: &str) -> Result<String, String> {
    let malformed = || "it takes a list of hosts, such as node[001-004,007]".to_owned();
    let mut host = String::new();
    let mut rest = list;
    loop {
        let end = rest.find([',', '[']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        if !rest[end..].starts_with('[') {
            break;
        }
        let (inside, behind) = rest[end + 1..].split_once(']').ok_or_else(malformed)?;
        host.push_str(inside.split([',', '-']).next().filter(|first| !first.is_empty()).ok_or_else(malformed)?);
        rest = behind;
    }
    match host.is_empty() || host.contains([']', ' ', '[']) {
        true => Err(malformed()),
        false => Ok(host),
    }
}
