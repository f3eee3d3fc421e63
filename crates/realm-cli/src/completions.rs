//! `realm completions`: scripts with which shells complete the command line.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, console::Output, error::Result};

const EXAMPLES: &str = "\
Where the script goes, so that every new shell has it:
  bash (with the package bash-completion):
      mkdir -p ~/.local/share/bash-completion/completions
      realm completions bash > ~/.local/share/bash-completion/completions/realm

  zsh (a folder of $fpath, before compinit runs):
      mkdir -p ~/.zfunc
      realm completions zsh > ~/.zfunc/_realm
    and in ~/.zshrc:
      fpath+=~/.zfunc; autoload -U compinit; compinit

  fish:
      realm completions fish > ~/.config/fish/completions/realm.fish

  PowerShell (a line of $PROFILE):
      realm completions powershell | Out-String | Invoke-Expression

  Elvish (a line of rc.elv):
      eval (realm completions elvish | slurp)";

/// Options of `realm completions`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Writes the script.
///
/// # Errors
/// The system's refusal to take output.
pub(crate) fn run(args: &CompletionsArgs) -> Result<()> {
    // Into memory first: the generator takes no refusal of a reader that left.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "realm", &mut script);
    let mut out = Output::new();
    out.text(&String::from_utf8_lossy(&script))?;
    out.flush()
}
