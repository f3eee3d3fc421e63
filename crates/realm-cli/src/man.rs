//! `realm man`: the manual pages.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, ValueHint};
use clap_mangen::Man;

use crate::{
    args::Cli,
    console::{self, Output, one_line},
    error::{CliError, Result},
    output,
};

const EXAMPLES: &str = "\
Examples:
  Read the main page:
      realm man | man -l -

  Write a page for each command to where `man` finds them:
      realm man --out ~/.local/share/man/man1
      man realm-bench";

/// Options of `realm man`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ManArgs {
    /// Write the main page and one for each command into this folder, which is made where it is
    /// missing; pages of the same names are replaced
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
}

/// Writes the pages.
///
/// # Errors
/// The system's refusal.
pub(crate) fn run(args: &ManArgs) -> Result<()> {
    // `realm help` repeats what the pages say.
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let Some(folder) = &args.out else {
        let mut out = Output::new();
        out.text(&page(cli)?.1)?;
        return out.flush();
    };
    let make = fs::create_dir_all(folder);
    make.map_err(|source| CliError::io(folder, "make the folder", source))?;
    let commands: Vec<_> = cli.get_subcommands().filter(|it| !it.is_hide_set()).cloned().collect();
    let count = commands.len() + 1;
    for command in commands.into_iter().chain([cli]) {
        let (name, text) = page(command)?;
        write(&folder.join(name), &text)?;
    }
    let folder = one_line(&folder.display().to_string());
    console::say(format_args!("wrote {count} pages to {folder}"));
    Ok(())
}

/// The page's file name and its text.
fn page(command: clap::Command) -> Result<(String, String)> {
    // A date would make each build's pages differ; left out, its place is taken by what follows.
    let man = Man::new(command).date(" ").manual("Realm manual");
    let man = man.source(concat!("realm ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    let name = man.get_filename();
    man.render(&mut text).map_err(|source| CliError::io(&name, "make the page", source))?;
    Ok((name, portable(&String::from_utf8_lossy(&text))))
}

/// The page with sections named as manuals name them, and in ASCII, which every `man` takes.
fn portable(page: &str) -> String {
    let page = page.replacen(".SH EXTRA\nExamples:\n", ".SH EXAMPLES\n", 1);
    let page = page.replacen(".SH EXTRA\n", ".SH NOTES\n", 1);
    let mut text = String::with_capacity(page.len());
    for c in page.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            text += &format!("\\[u{:04X}]", u32::from(c));
        }
    }
    text
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = output::create(path, [])?;
    let write = file.write_all(text.as_bytes());
    write.map_err(|source| CliError::io(path, "write the file", source))?;
    Ok(file.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_ascii() {
        assert_eq!(portable("a – 🦀"), "a \\[u2013] \\[u1F980]");
        assert_eq!(portable(".SH EXTRA\nExamples:\n  x"), ".SH EXAMPLES\n  x");
        assert_eq!(portable(".SH EXTRA\nWhere"), ".SH NOTES\nWhere");
    }
}
