//! The methods of Python's strings, lists and dictionaries that templates call.
//!
//! Those that change a list or a dictionary are missing, as in transformers' sandbox. What is not
//! here comes from minijinja's own set.
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::values::{BYTES_PER_FUEL, Dict, List, invalid, is_map};

/// The widest field of `str.format`, `ljust` and the like.
const WIDEST: usize = 1000;

/// What Python takes for white space: Unicode's, and four separators among the controls.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Calls a method that minijinja does not have on a value.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = string(state, text, method, args)? {
            return Ok(result);
        }
    } else if let Some(object) = value.as_object() {
        let result = match value.kind() {
            ValueKind::Map if is_map(object) => dict(value, method, args)?,
            ValueKind::Seq | ValueKind::Iterable => list(state, value, method, args)?,
            _ => None,
        };
        return result.ok_or_else(|| Error::from(ErrorKind::UnknownMethod));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn dict(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let Some(object) = value.as_object() else { return Ok(None) };
    let pairs = || object.try_iter_pairs().into_iter().flatten();
    let values: Vec<Value> = match method {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            return Ok(Some(match object.get_value(key) {
                Some(value) => value,
                None => default.unwrap_or_else(|| Value::from(())),
            }));
        }
        "copy" => return from_args(args).map(|()| Some(value.clone())),
        "keys" => pairs().map(|(key, _)| key).collect(),
        "values" => pairs().map(|(_, value)| value).collect(),
        "items" => pairs()
            .map(|(key, value)| Ok(Value::from_object(List::new(vec![key, value], true)?)))
            .collect::<Result<_, Error>>()?,
        _ => return Ok(None),
    };
    let () = from_args(args)?;
    Ok(Some(Value::from_object(List::new(values, false)?)))
}

fn list(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    if method == "copy" {
        return from_args(args).map(|()| Some(value.clone()));
    }
    if !matches!(method, "count" | "index") {
        return Ok(None);
    }
    let (wanted,): (&Value,) = from_args(args)?;
    let mut count = 0;
    for (index, item) in value.try_iter()?.checked().enumerate() {
        state.consume_fuel(1)?;
        if item? == *wanted {
            if method == "index" {
                return Ok(Some(Value::from(index)));
            }
            count += 1;
        }
    }
    if method == "index" {
        Err(invalid("the list has no such item"))
    } else {
        Ok(Some(Value::from(count)))
    }
}

fn string(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value: Value = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            strip(text, chars, method != "rstrip", method != "lstrip").into()
        }
        "split" | "rsplit" => split(state, text, method == "rsplit", args)?,
        "splitlines" => splitlines(state, text, args)?,
        "partition" | "rpartition" => partition(text, method == "rpartition", args)?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "join" => join(state, text, args)?.into(),
        "format" => {
            check_format(text)?;
            return Ok(None);
        }
        "ljust" | "rjust" | "center" | "zfill" => justify(text, method, args)?.into(),
        "index" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = text.find(wanted).ok_or_else(|| invalid("the string has no such part"))?;
            text[..at].chars().count().into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "isspace" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(is_space)).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// `str.title`: the first letter after anything that is none is large, all others small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// `str.strip` and its two halves.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, start: bool, end: bool) -> &'t str {
    let set: Option<Vec<char>> = chars.map(|chars| chars.chars().collect());
    let member = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let text = if start { text.trim_start_matches(member) } else { text };
    if end { text.trim_end_matches(member) } else { text }
}

fn strings<'t>(state: &State, parts: impl Iterator<Item = &'t str>) -> Result<Vec<Value>, Error> {
    let mut values = Vec::new();
    for part in parts {
        state.consume_fuel(1)?;
        values.push(Value::from(part));
    }
    Ok(values)
}

fn list_of(values: Vec<Value>, tuple: bool) -> Result<Value, Error> {
    Ok(Value::from_object(List::new(values, tuple)?))
}

fn split(state: &State, text: &str, right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(value) => Some(value),
        None => kwargs.get::<Option<Value>>("sep")?,
    };
    let most = most.or(kwargs.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    kwargs.assert_all_used()?;
    let separator = separator.filter(|value| !value.is_none());
    let Some(separator) = separator else {
        let mut values = if right {
            strings(state, SpaceSplit { rest: text, left: most, right: true })?
        } else {
            strings(state, SpaceSplit { rest: text, left: most, right: false })?
        };
        if right {
            values.reverse();
        }
        return list_of(values, false);
    };
    let separator = separator.as_str().ok_or_else(|| invalid("a separator must be a string"))?;
    if separator.is_empty() {
        return Err(invalid("a separator must not be empty"));
    }
    let values = match (most, right) {
        (None, _) => strings(state, text.split(separator))?,
        (Some(most), false) => strings(state, text.splitn(most.saturating_add(1), separator))?,
        (Some(most), true) => {
            let mut values = strings(state, text.rsplitn(most.saturating_add(1), separator))?;
            values.reverse();
            values
        }
    };
    list_of(values, false)
}

/// The words of a text; after `left` of them the rest is one piece.
struct SpaceSplit<'t> {
    rest: &'t str,
    left: Option<usize>,
    right: bool,
}

impl<'t> Iterator for SpaceSplit<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        let rest = if self.right {
            self.rest.trim_end_matches(is_space)
        } else {
            self.rest.trim_start_matches(is_space)
        };
        self.rest = "";
        if rest.is_empty() {
            return None;
        }
        if self.left == Some(0) {
            return Some(rest);
        }
        self.left = self.left.map(|left| left - 1);
        let cut = if self.right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut else { return Some(rest) };
        let (before, after) = rest.split_at(cut);
        let after_space = after.strip_prefix(is_space).unwrap_or(after);
        self.rest = if self.right { before } else { after };
        Some(if self.right { after_space } else { before })
    }
}

fn splitlines(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
    let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    let lines = std::iter::from_fn(|| {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find(is_end).unwrap_or(rest.len());
        let after = &rest[end..];
        let len = if after.starts_with("\r\n") {
            2
        } else {
            after.chars().next().map_or(0, char::len_utf8)
        };
        let line = &rest[..if keep { end + len } else { end }];
        rest = &rest[end + len..];
        Some(line)
    });
    list_of(strings(state, lines)?, false)
}

fn partition(text: &str, right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("a separator must not be empty"));
    }
    let found = if right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if right => ["", "", text],
        None => [text, "", ""],
    };
    list_of(parts.map(Value::from).to_vec(), true)
}

/// Strings with others between them; every byte is paid for before it is made.
fn join(state: &State, separator: &str, args: &[Value]) -> Result<String, Error> {
    let (values,): (&Value,) = from_args(args)?;
    let mut out = String::new();
    for (index, item) in values.try_iter()?.checked().enumerate() {
        let item = item?;
        let Some(item) = item.as_str() else {
            return Err(invalid(format!("only strings can be joined, not {}", item.kind())));
        };
        let separator = if index > 0 { separator } else { "" };
        state.consume_fuel(1 + ((item.len() + separator.len()) / BYTES_PER_FUEL) as u64)?;
        out.push_str(separator);
        out.push_str(item);
    }
    Ok(out)
}

/// Whether no field of a format is wider than [`WIDEST`].
pub(super) fn check_format(format: &str) -> Result<(), Error> {
    let mut digits = 0;
    for byte in format.bytes() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 3 {
            return Err(invalid(format!("a format may ask for fields of at most {WIDEST}")));
        }
    }
    Ok(())
}

fn justify(text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let width = usize::try_from(width).unwrap_or(0);
    if width > WIDEST {
        return Err(invalid(format!("a field may be at most {WIDEST} wide")));
    }
    let pad = width.saturating_sub(text.chars().count());
    let fill = if method == "zfill" { "0" } else { fill.unwrap_or(" ") };
    if fill.chars().count() != 1 {
        return Err(invalid("a field is filled with one character"));
    }
    Ok(match method {
        "ljust" => text.to_owned() + &fill.repeat(pad),
        "rjust" => fill.repeat(pad) + text,
        "zfill" => match text.strip_prefix(['-', '+']) {
            Some(digits) => text[..1].to_owned() + &fill.repeat(pad) + digits,
            None => fill.repeat(pad) + text,
        },
        _ => {
            // Python puts the odd one on the left where the width is odd.
            let left = pad / 2 + (pad & width & 1);
            fill.repeat(left) + text + &fill.repeat(pad - left)
        }
    })
}

/// The pairs of a map, as `dict.items` and the filter `items` give them.
pub(super) fn items(value: &Value) -> Result<Value, Error> {
    let pairs = match value.as_object().filter(|object| is_map(object)) {
        Some(_) => dict(value, "items", &[])?,
        None if value.is_undefined() => Some(list_of(Vec::new(), false)?),
        None => None,
    };
    pairs.ok_or_else(|| invalid(format!("items need a map, not {}", value.kind())))
}

/// A map of these pairs.
pub(super) fn dict_of(pairs: Vec<(Value, Value)>) -> Result<Value, Error> {
    Ok(Value::from_object(Dict::new(pairs)?))
}
