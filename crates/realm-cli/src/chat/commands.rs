//! What a line of a chat means: a message or one of the commands.

use std::path::PathBuf;

use crate::error::{CliError, Result};

/// A command's name, other names, its argument and what it does.
pub(super) struct About {
    pub(super) name: &'static str,
    also: &'static [&'static str],
    argument: &'static str,
    about: &'static str,
}

macro_rules! about {
    ($name:literal, $also:expr, $argument:literal, $about:literal) => {
        About { name: $name, also: &$also, argument: $argument, about: $about }
    };
}

/// All commands, in the order of the help.
pub(super) const COMMANDS: [About; 10] = [
    about!("/help", [], "", "show this"),
    about!("/exit", ["/quit"], "", "leave, as Ctrl-D does"),
    about!("/clear", [], "", "begin a new conversation; the system text stays"),
    about!("/system", [], "TEXT", "set the system text; alone shows it, none removes it"),
    about!("/regenerate", ["/retry"], "", "answer the last message anew"),
    about!("/undo", [], "", "take back the last message and its answer"),
    about!("/save", [], "FILE", "write the conversation as JSON messages"),
    about!("/load", [], "FILE", "go on with a conversation from JSON messages"),
    about!("/set", [], "NAME VALUE", "change a setting; alone lists them"),
    about!("/stats", [], "", "show tokens, speed and context of the last answer"),
];

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Help,
    Exit,
    Clear,
    /// With the new text.
    System(Option<String>),
    Regenerate,
    Undo,
    Save(PathBuf),
    Load(PathBuf),
    /// With a name and a value.
    Set(Option<(String, String)>),
    Stats,
}

/// A line, or several that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// White space alone.
    Nothing,
    /// What the user says.
    Message(String),
    Command(Command),
}

/// Reads a line. One that begins with `/` is a command, with `//` a message that begins with `/`.
///
/// # Errors
/// An unknown command, or a command without what it needs.
pub(super) fn parse(line: &str) -> Result<Input> {
    let text = line.trim();
    if text.is_empty() {
        return Ok(Input::Nothing);
    }
    if !text.starts_with('/') || text.starts_with("//") {
        let text = text.strip_prefix('/').unwrap_or(text);
        return Ok(Input::Message(text.into()));
    }
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let is_named = |about: &&About| about.name == name || about.also.contains(&name);
    let Some(about) = COMMANDS.iter().find(is_named) else {
        return Err(CliError::Input(unknown(name)));
    };
    let some = || (!rest.is_empty()).then(|| rest.to_owned());
    let file = || match some() {
        Some(name) => Ok(from_home(&name)),
        None => Err(CliError::Input(format!("{name} needs the name of a file: {name} FILE.json"))),
    };
    if about.argument.is_empty() && !rest.is_empty() {
        return Err(CliError::Input(format!("{name} stands alone; {rest:?} is too much")));
    }
    Ok(Input::Command(match about.name {
        "/exit" => Command::Exit,
        "/clear" => Command::Clear,
        "/system" => Command::System(some()),
        "/regenerate" => Command::Regenerate,
        "/undo" => Command::Undo,
        "/save" => Command::Save(file()?),
        "/load" => Command::Load(file()?),
        "/set" => Command::Set(some().map(|rest| setting(&rest))),
        "/stats" => Command::Stats,
        _ => Command::Help,
    }))
}

/// A name and its value, with a space or = between.
fn setting(text: &str) -> (String, String) {
    let at = text.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(text.len());
    let (name, value) = text.split_at(at);
    let value = value.trim_start();
    (name.to_owned(), value.strip_prefix('=').unwrap_or(value).trim().to_owned())
}

/// A path in which `~/` is the home folder, as in shells.
fn from_home(name: &str) -> PathBuf {
    match (name.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => name.into(),
    }
}

fn unknown(name: &str) -> String {
    let names =
        COMMANDS.iter().flat_map(|about| [about.name].into_iter().chain(about.also.to_vec()));
    let near = match nearest(name, names) {
        Some(near) => format!("did you mean {near}?"),
        None => "/help lists them.".to_owned(),
    };
    let shown: String = name.chars().take(40).collect();
    format!("{shown}: no such command; {near} To say a text that begins with /, write //")
}

/// The one among `names` that is most like `word`, where one is.
pub(super) fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(40).collect();
    let rated = names.map(|name| {
        let begins = word.len() > 2 && name.chars().take(word.len()).eq(word.iter().copied());
        (if begins { 0 } else { distance(&word, name) }, name)
    });
    let (distance, name) = rated.min_by_key(|rated| rated.0)?;
    (distance <= name.len() / 3).then_some(name)
}

/// How many characters must be put in, left out, changed or swapped with the next to make one of the other
/// (optimal string alignment).
fn distance(word: &[char], name: &str) -> usize {
    let name: Vec<char> = name.chars().collect();
    // table[i][j]: of the first i of `word` and the first j of `name`.
    let mut table = vec![vec![0; name.len() + 1]; word.len() + 1];
    for i in 0..=word.len() {
        for j in 0..=name.len() {
            table[i][j] = match (i, j) {
                (0, _) | (_, 0) => i + j,
                _ => {
                    let changed = table[i - 1][j - 1] + usize::from(word[i - 1] != name[j - 1]);
                    changed.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1)
                }
            };
            if i > 1 && j > 1 && word[i - 1] == name[j - 2] && word[i - 2] == name[j - 1] {
                table[i][j] = table[i][j].min(table[i - 2][j - 2] + 1);
            }
        }
    }
    table[word.len()][name.len()]
}

/// The help.
pub(super) fn help() -> String {
    let names = |about: &About| {
        let names = [about.name].into_iter().chain(about.also.iter().copied());
        let names = names.collect::<Vec<_>>().join(", ");
        if about.argument.is_empty() { names } else { format!("{names} {}", about.argument) }
    };
    let width = COMMANDS.iter().map(|about| names(about).len()).max().unwrap_or(0);
    let mut text = String::new();
    for about in &COMMANDS {
        text += &format!("{:width$}  {}\n", names(about), about.about);
    }
    text + "\nEverything else is said to the model; to begin a message with /, write //. A line that \
            ends\nwith \\ goes on in the next one. Ctrl-C ends an answer; at the prompt it clears the \
            line, twice\nit leaves."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        match parse(line) {
            Ok(Input::Command(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_are_messages_or_commands() {
        let message = |text: &str| Input::Message(text.into());
        assert_eq!(parse("").unwrap(), Input::Nothing);
        assert_eq!(parse(" \t\n").unwrap(), Input::Nothing);
        assert_eq!(parse(" hello\nyou \n").unwrap(), message("hello\nyou"));
        assert_eq!(parse("//etc is a folder").unwrap(), message("/etc is a folder"));
        assert_eq!(parse("1/2").unwrap(), message("1/2"));
        assert_eq!(command("/help"), Command::Help);
        assert_eq!(command(" /exit "), Command::Exit);
        assert_eq!(command("/quit"), Command::Exit);
        assert_eq!(command("/retry"), Command::Regenerate);
        assert_eq!(command("/regenerate"), Command::Regenerate);
        assert_eq!(command("/system"), Command::System(None));
        assert_eq!(command("/system Be\nbrief. "), Command::System(Some("Be\nbrief.".into())));
        assert_eq!(command("/save a b.json"), Command::Save("a b.json".into()));
        assert_eq!(command("/load x"), Command::Load("x".into()));
        assert_eq!(command("/set"), Command::Set(None));
        for line in ["/set top-k 5", "/set top-k=5", "/set  top-k = 5"] {
            assert_eq!(command(line), Command::Set(Some(("top-k".into(), "5".into()))), "{line}");
        }
        assert_eq!(command("/set seed"), Command::Set(Some(("seed".into(), "".into()))));
        // Each is reached by its name.
        for about in &COMMANDS {
            let file = if about.argument == "FILE" { " x" } else { "" };
            command(&format!("{}{file}", about.name));
            assert!(help().contains(about.name));
        }
    }

    #[test]
    fn wrong_commands_say_what_is_right() {
        for (line, parts) in [
            ("/sytem x", ["/sytem", "did you mean /system?"]),
            ("/quti", ["/quti", "/quit"]),
            ("/reg", ["/reg", "/regenerate"]),
            ("/wibble", ["/wibble", "/help"]),
            ("/", ["no such command", "//"]),
            ("/save", ["/save FILE", "name of a file"]),
            ("/load ", ["/load FILE", "name of a file"]),
            ("/undo 2", ["/undo", "too much"]),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
            assert!(!error.contains('\n'));
        }
        assert!(parse(&format!("/{}", "é".repeat(10_000))).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn distances_are_those_of_the_textbook() {
        let of = |a: &str, b| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("hlep", "help"), 1);
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("abc", ""), 3);
        assert_eq!(of("same", "same"), 0);
    }
}
