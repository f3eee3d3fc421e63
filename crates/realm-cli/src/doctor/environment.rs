//! The settings that the environment holds.

use std::collections::BTreeSet;

use clap::CommandFactory;

use crate::args::Cli;

/// A variable that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    /// This program reads it.
    pub(super) known: bool,
}

/// Read by devices, not by the command line.
const DEVICES: [&str; 3] = ["REALM_SEED", "REALM_CUDA_SERIAL", "CUDA_VISIBLE_DEVICES"];
/// Read when Realm is built or tested.
const ELSEWHERE: [&str; 7] = [
    "REALM_NVCC",
    "REALM_CUDA_ARCHS",
    "REALM_KERNEL_CACHE",
    "REALM_KERNEL_SPILLS",
    "REALM_REFERENCE",
    "REALM_REQUIRE",
    "REALM_SCHEDULES",
];

/// Those of the process that concern Realm, by name. Settings of builds and tests are left out; others
/// that begin like Realm's own are told, as they may be misspelt.
pub(super) fn read() -> Vec<Variable> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    concerning(std::env::vars_os().map(|(name, value)| (text(name), text(value))))
}

fn concerning(variables: impl Iterator<Item = (String, String)>) -> Vec<Variable> {
    let known = known();
    let mut found: Vec<Variable> = variables
        .filter(|(name, _)| known.contains(name) || name.starts_with("REALM_"))
        .filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()))
        .map(|(name, value)| Variable { known: known.contains(&name), name, value })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The names that this program reads.
fn known() -> BTreeSet<String> {
    let cli = Cli::command();
    let commands = cli.get_subcommands().flat_map(|command| command.get_arguments());
    let options = commands.filter_map(|option| option.get_env());
    let options = options.map(|name| name.to_string_lossy().into_owned());
    options.chain(DEVICES.map(String::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_and_misspelt_ones_marked() {
        let set = ["REALM_THREADS", "HOME", "REALM_THREAD", "REALM_SCHEDULES", "REALM_DEVICE"];
        let found = concerning(set.iter().map(|name| (name.to_string(), "2".to_string())));
        let found: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.known)).collect();
        let expected = [("REALM_DEVICE", true), ("REALM_THREAD", false), ("REALM_THREADS", true)];
        assert_eq!(found, expected);
    }
}
