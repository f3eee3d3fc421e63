//! Values as Python writes them: `str`, `repr` and `json.dumps`.
use minijinja::value::{DynObject, ValueKind};
use minijinja::{Error, Value};

use super::values::{DEPTH, List, Meter, invalid, is_map, out_of_fuel};

/// How deep values may be: those that a template holds, and a few levels that it makes at once.
const LEVELS: usize = 2 * DEPTH;

/// `str(value)`; nothing for an undefined value.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, LEVELS)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, levels: usize) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        write_string(out, text);
        return Ok(());
    }
    let Some(object) = value.as_object() else {
        match value.kind() {
            ValueKind::Undefined => out.push_str("Undefined"),
            ValueKind::Number if !value.is_integer() => {
                out.push_str(&float(f64::try_from(value.clone())?));
            }
            _ => out.push_str(&value.to_string()),
        }
        return Ok(());
    };
    let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = is_tuple(object);
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()?.checked() {
                out.push_str(if count > 0 { ", " } else { "" });
                write(out, &item?, levels)?;
                count += 1;
            }
            out.push_str(match (tuple, count) {
                (false, _) => "]",
                (true, 1) => ",)",
                (true, _) => ")",
            });
        }
        ValueKind::Map if is_map(object) => {
            out.push('{');
            for (index, (key, value)) in object.try_iter_pairs().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write(out, &key, levels)?;
                out.push_str(": ");
                write(out, &value, levels)?;
            }
            out.push('}');
        }
        ValueKind::Map => out.push_str("<namespace>"),
        _ => out.push_str("<function>"),
    }
    if Meter::is_empty() { Err(out_of_fuel()) } else { Ok(()) }
}

fn too_deep() -> Error {
    invalid(format!("lists and maps are nested more than {LEVELS} deep"))
}

/// Whether minijinja or this crate made it as a tuple.
fn is_tuple(object: &DynObject) -> bool {
    match object.downcast_ref::<List>() {
        Some(list) => list.tuple,
        None => object.downcast_ref::<minijinja::value::Tuple>().is_some(),
    }
}

/// The shortest text that reads back as the number, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn write_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote || c == '\\' => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push(quote);
}

/// Python's `isprintable` without its table of unassigned characters: controls, spaces other than
/// the common one, marks of format and characters of private use are not.
fn is_printable(c: char) -> bool {
    let hidden = c.is_control() || (c.is_whitespace() && c != ' ');
    let format = matches!(
        u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
            | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff | 0xfff9..=0xfffb | 0xe_0001
            | 0xe_0020..=0xe_007f | 0xf_0000..
    );
    !hidden && !format
}

/// How `json.dumps` lays out its text.
pub(super) struct JsonStyle {
    /// What stands before each item, once a level; `None` for one line.
    pub(super) indent: Option<String>,
    /// Between items.
    pub(super) comma: String,
    /// Between a key and its value.
    pub(super) colon: String,
    /// Keys in the order of their texts.
    pub(super) sort_keys: bool,
    /// Escapes for all but ASCII.
    pub(super) ascii: bool,
}

/// `json.dumps(value)`.
pub(super) fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 1)?;
    Ok(out)
}

fn write_json(
    out: &mut String,
    value: &Value,
    style: &JsonStyle,
    level: usize,
) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        write_json_string(out, text, style.ascii);
        return Ok(());
    }
    if level > LEVELS {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()?.checked() {
                start_item(out, style, level, any);
                write_json(out, &item?, style, level + 1)?;
                any = true;
            }
            end_items(out, style, level, any, ']');
        }
        ValueKind::Map => {
            let object = value.as_object().filter(|object| is_map(object));
            let object = object.ok_or_else(|| not_json(value))?;
            let mut entries = Vec::new();
            for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                entries.push((json_key(&key)?, value));
            }
            if style.sort_keys {
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            out.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                start_item(out, style, level, index > 0);
                write_json_string(out, key, style.ascii);
                out.push_str(&style.colon);
                write_json(out, value, style, level + 1)?;
            }
            end_items(out, style, level, !entries.is_empty(), '}');
        }
        _ => out.push_str(&json_scalar(value)?),
    }
    if Meter::is_empty() { Err(out_of_fuel()) } else { Ok(()) }
}

fn not_json(value: &Value) -> Error {
    invalid(format!("{} cannot be written as JSON", value.kind()))
}

fn json_scalar(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => if value.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            number if number.is_nan() => "NaN".into(),
            number if number.is_infinite() && number > 0.0 => "Infinity".into(),
            number if number.is_infinite() => "-Infinity".into(),
            number => float(number),
        },
        _ => return Err(not_json(value)),
    })
}

fn json_key(key: &Value) -> Result<String, Error> {
    key.as_str().map_or_else(|| json_scalar(key), |text| Ok(text.to_owned()))
}

fn start_item(out: &mut String, style: &JsonStyle, level: usize, follows: bool) {
    if follows {
        out.push_str(&style.comma);
    }
    if let Some(indent) = &style.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(indent.as_str(), level));
    }
}

fn end_items(out: &mut String, style: &JsonStyle, level: usize, any: bool, close: char) {
    if let (Some(indent), true) = (&style.indent, any) {
        out.push('\n');
        out.extend(std::iter::repeat_n(indent.as_str(), level - 1));
    }
    out.push(close);
}

fn write_json_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || (ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
