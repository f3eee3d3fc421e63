//! Filters, tests and functions: those of the guarding pass, and those in which minijinja differs
//! from Jinja and Python.
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, Output, State, Value};

use super::methods::{self, strip};
use super::python::{self, JsonStyle};
use super::values::{BYTES_PER_FUEL, invalid, is_map, own};
use super::{operands, values};

/// The most spaces that a level of JSON may be indented by.
const WIDEST_INDENT: usize = 32;
/// The longest format for `strftime_now`, in bytes.
const LONGEST_FORMAT: usize = 256;

/// Puts everything into an environment.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter(operands::ANY, any);
    env.add_filter(operands::FACTOR, factor);
    env.add_filter(operands::TEXT, text);
    env.add_filter(operands::STORED, stored);
    env.add_filter(operands::ITERATED, iterated);
    env.add_filter(operands::BOUND, bound);
    env.add_filter("string", text);
    env.add_filter("tojson", tojson);
    env.add_filter("join", join);
    env.add_filter("items", |value: &Value| methods::items(value));
    env.add_filter("trim", trim);
    env.add_filter("format", format);
    env.add_filter("pprint", text);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_test("string", |value: &Value| value.as_str().is_some());
    env.add_test("mapping", |value: &Value| value.as_object().is_some_and(is_map));
    env.add_test("sequence", is_sequence);
    env.add_test("iterable", is_iterable);
    env.add_test("callable", is_callable);
    env.remove_global("debug");
    env.add_function("range", range);
    env.add_function("namespace", namespace);
    env.add_function("dict", dict);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("raise_exception", raise_exception);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(write);
}

/// The error of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::text(message)?;
    Err(invalid("raise_exception was called").with_source(Raised(message)))
}

/// `strftime_now` for a moment.
pub(super) fn strftime_now(now: super::Now, format: &str) -> Result<String, Error> {
    if format.len() > LONGEST_FORMAT {
        return Err(invalid(format!("strftime_now takes formats of up to {LONGEST_FORMAT} bytes")));
    }
    Ok(now.strftime(format))
}

/// Writes a value into the output.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.as_str() {
        Some(_) => return minijinja::escape_formatter(out, state, value),
        None if value.is_undefined() => return Ok(()),
        None => python::repr(&own(state, value)?)?,
    };
    minijinja::escape_formatter(out, state, &Value::from(text))
}

fn any(state: &State, value: &Value) -> Result<Value, Error> {
    own(state, value)
}

fn factor(value: &Value) -> Result<Value, Error> {
    if value.as_object().is_some() {
        return Err(invalid("a list or map cannot be multiplied or divided"));
    }
    Ok(value.clone())
}

fn text(state: &State, value: &Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => Ok(Value::from(python::text(&own(state, value)?)?)),
    }
}

fn stored(state: &State, value: &Value) -> Result<Value, Error> {
    let value = own(state, value)?;
    // A list of the value refuses what a namespace must not hold.
    values::List::new(vec![value.clone()], false)?;
    Ok(value)
}

/// The bound of a slice: minijinja negates steps, which the least number does not survive.
fn bound(value: &Value) -> Value {
    const FAR: i128 = 1 << 40;
    match i128::try_from(value.clone()) {
        Ok(number) if value.is_integer() => Value::from(number.clamp(-FAR, FAR) as i64),
        _ => value.clone(),
    }
}

fn iterated(state: &State, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        let chars = iterate(state, value)?.collect::<Result<Vec<Value>, Error>>()?;
        return Ok(Value::from_object(values::List::new(chars, false)?));
    }
    if !value.is_undefined() && (value.is_none() || value.try_iter().is_err()) {
        return Err(invalid(format!("{} has no items to go over", value.kind())));
    }
    own(state, value)
}

fn tojson(state: &State, value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    // The order of transformers' own filter.
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let argument = |index: usize| -> Result<Option<Value>, Error> {
        let value = match args.get(index) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(names[index])?,
        };
        Ok(value.filter(|value| !value.is_none()))
    };
    let indent = argument(1)?.map(|indent| match (indent.as_str(), indent.as_usize()) {
        (Some(indent), _) if indent.len() <= WIDEST_INDENT => Ok(indent.to_owned()),
        (None, Some(indent)) if indent <= WIDEST_INDENT => Ok(" ".repeat(indent)),
        _ => Err(invalid(format!("tojson indents by at most {WIDEST_INDENT}"))),
    });
    let indent = indent.transpose()?;
    let separators = match argument(2)? {
        Some(pair) => {
            let part = |index| pair.get_item_by_index(index).and_then(|part| python::text(&part));
            Some((part(0)?, part(1)?))
        }
        None => None,
    };
    if separators.iter().any(|(comma, colon)| comma.len() + colon.len() > WIDEST_INDENT) {
        return Err(invalid("tojson's separators are too long"));
    }
    let (comma, colon) = separators
        .unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.into(), ": ".into()));
    let flag = |index| Ok::<_, Error>(argument(index)?.is_some_and(|value| value.is_true()));
    let style = JsonStyle { indent, comma, colon, sort_keys: flag(3)?, ascii: flag(0)? };
    kwargs.assert_all_used()?;
    Ok(Value::from(python::json(&own(state, value)?, &style)?))
}

fn join(
    state: &State,
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let separator = match separator {
        Some(separator) => python::text(&separator)?,
        None => {
            kwargs.get::<Option<Value>>("d")?.map_or(Ok(String::new()), |d| python::text(&d))?
        }
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => kwargs.get("attribute")?,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    if value.is_undefined() {
        return Ok(Value::from(out));
    }
    for (index, item) in iterate(state, value)?.enumerate() {
        let item = own(state, &item?)?;
        let item = match &attribute {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        };
        let item = python::text(&item)?;
        let separator = if index > 0 { &separator } else { "" };
        state.consume_fuel(1 + ((item.len() + separator.len()) / BYTES_PER_FUEL) as u64)?;
        out.push_str(separator);
        out.push_str(&item);
    }
    Ok(Value::from(out))
}

type Items = Box<dyn Iterator<Item = Result<Value, Error>>>;

/// The items of a list, the keys of a map or the characters of a string.
fn iterate(state: &State, value: &Value) -> Result<Items, Error> {
    if let Some(text) = value.as_str() {
        state.consume_fuel(text.len() as u64)?;
        let chars: Vec<char> = text.chars().collect();
        return Ok(Box::new(chars.into_iter().map(|c| Ok(Value::from(c)))));
    }
    Ok(Box::new(value.try_iter()?.checked()))
}

fn trim(value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    Ok(match value.as_str() {
        Some(text) => strip(text, chars, true, true).into(),
        None => strip(&python::text(value)?, chars, true, true).into(),
    })
}

fn format(state: &State, format: &str, args: Rest<Value>) -> Result<Value, Error> {
    methods::check_format(format)?;
    let args: Result<Vec<Value>, Error> = args.iter().map(|value| own(state, value)).collect();
    let text =
        minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, format, &args?)?;
    Ok(Value::from(text))
}

/// A whole number; the default, 0, where it is none.
fn int(value: &Value, default: Option<Value>) -> Value {
    let text = value.as_str().map(str::trim);
    let whole = text.and_then(|text| text.replace('_', "").parse::<i64>().ok());
    let number = whole.map(Value::from).or_else(|| {
        let number = text.map_or_else(|| f64::try_from(value.clone()).ok(), |t| t.parse().ok())?;
        // The cast keeps what fits; Python's integers have no end.
        number.is_finite().then(|| Value::from(number.trunc() as i64))
    });
    match number {
        _ if value.is_integer() => value.clone(),
        _ if value.kind() == ValueKind::Bool => Value::from(i64::from(value.is_true())),
        Some(number) => number,
        None => default.unwrap_or_else(|| Value::from(0)),
    }
}

/// A number with a fraction; the default, 0.0, where it is none.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

/// HTML's escapes, those that Python's `markupsafe` writes.
fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = python::text(&own(state, value)?)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// Jinja's test: what has a length and items by key.
fn is_sequence(value: &Value) -> bool {
    let kind = value.kind();
    matches!(kind, ValueKind::Undefined | ValueKind::String | ValueKind::Seq)
        || value.as_object().is_some_and(is_map)
}

fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || (!value.is_none() && value.try_iter().is_ok())
}

fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

fn range(state: &State, first: i64, end: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, end) = end.map_or((0, first), |end| (first, end));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("range needs a step other than 0"));
    }
    let distance = if step > 0 {
        i128::from(end) - i128::from(start)
    } else {
        i128::from(start) - i128::from(end)
    };
    let step_size = i128::from(step.unsigned_abs());
    let len = u64::try_from((distance.max(0) + step_size - 1) / step_size).unwrap_or(u64::MAX);
    state.consume_fuel(len)?;
    // The product may leave 64 bits, but the sum is back within them.
    let items = (0..len as i64)
        .map(|index| Value::from(start.wrapping_add(index.wrapping_mul(step))))
        .collect();
    Ok(Value::from_object(values::List::new(items, false)?))
}

fn namespace(state: &State, defaults: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(defaults) = defaults {
        let defaults = own(state, &defaults)?;
        let object = defaults.as_object().filter(|object| is_map(object));
        let object =
            object.ok_or_else(|| invalid("a namespace is made of a map or of keywords"))?;
        pairs.extend(object.try_iter_pairs().into_iter().flatten());
    }
    for name in kwargs.args() {
        pairs.push((Value::from(name), stored(state, &kwargs.get::<Value>(name)?)?));
    }
    // minijinja's own has the type that `set` looks for.
    let (defaults,) = from_args(&[methods::dict_of(pairs)?])?;
    minijinja::functions::namespace(Some(defaults))
}

fn dict(state: &State, defaults: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(defaults) = defaults {
        let defaults = own(state, &defaults)?;
        match defaults.as_object().filter(|object| is_map(object)) {
            Some(object) => pairs.extend(object.try_iter_pairs().into_iter().flatten()),
            None => {
                for pair in defaults.try_iter()?.checked() {
                    let pair = pair?;
                    pairs.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
                }
            }
        }
    }
    for name in kwargs.args() {
        pairs.push((Value::from(name), own(state, &kwargs.get::<Value>(name)?)?));
    }
    methods::dict_of(pairs)
}
