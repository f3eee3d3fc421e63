//! Lists and maps of templates: shallow, and metered when they are walked.
//!
//! minijinja walks a value (to compare, hash or print it) through [`Object::enumerate`] alone.
//! There the meter of the running render pays for the items; once it is used up, lists and maps
//! show no items, which ends every walk, and the next filter or output is an error.
use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// The greatest depth of lists and maps.
pub(super) const DEPTH: usize = 64;
/// What a byte of text costs: as in minijinja, 64 bytes are one fuel.
pub(super) const BYTES_PER_FUEL: usize = 64;

thread_local! {
    /// What the render that runs on this thread may still walk, in fuel.
    static METER: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// The meter of one render; the outer one is back when it is dropped.
pub(super) struct Meter {
    outer: u64,
}

impl Meter {
    pub(super) fn start(fuel: u64) -> Self {
        Self { outer: METER.replace(fuel) }
    }

    /// Whether everything is used up.
    pub(super) fn is_empty() -> bool {
        METER.get() == 0
    }

    /// Takes `fuel`; false where there is too little, which empties the meter.
    pub(super) fn spend(fuel: u64) -> bool {
        let left = METER.get().saturating_sub(fuel);
        METER.set(left);
        left > 0
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        METER.set(self.outer);
    }
}

/// The error of a used-up meter.
pub(super) fn out_of_fuel() -> Error {
    Error::from(ErrorKind::OutOfFuel)
}

/// An error that names what cannot be done.
pub(super) fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// A list or, printed with round brackets, a tuple.
pub(super) struct List {
    items: Vec<Value>,
    pub(super) tuple: bool,
    depth: usize,
    cost: u64,
}

/// A map in the order of insertion.
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Value, usize>,
    depth: usize,
    cost: u64,
}

impl List {
    pub(super) fn new(items: Vec<Value>, tuple: bool) -> Result<Self, Error> {
        let depth = depth_above(&items)?;
        let cost = items.iter().map(cost).sum();
        Ok(Self { items, tuple, depth, cost })
    }
}

impl Dict {
    pub(super) fn new(pairs: Vec<(Value, Value)>) -> Result<Self, Error> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        let mut index = HashMap::with_capacity(pairs.len());
        for (key, value) in pairs {
            if key.as_object().is_some() {
                return Err(invalid("a list or map cannot be the key of a map"));
            }
            let at = *index.entry(key.clone()).or_insert(entries.len());
            match entries.get_mut(at) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        let depth = depth_above(entries.iter().map(|(_, value)| value))?;
        let cost = entries.iter().map(|(key, value)| cost(key) + cost(value)).sum();
        Ok(Self { entries, index, depth, cost })
    }
}

/// What walking past a value costs, without what is in it.
fn cost(value: &Value) -> u64 {
    1 + (value.as_str().map_or(0, str::len) / BYTES_PER_FUEL) as u64
}

/// The depth of a list or map of these values.
fn depth_above<'v>(values: impl IntoIterator<Item = &'v Value>) -> Result<usize, Error> {
    let mut depth = 0;
    for value in values {
        let Some(object) = value.as_object() else { continue };
        depth = depth.max(own_depth(object).ok_or_else(|| {
            invalid("a namespace, macro or loop cannot stand in a list, a map or a namespace")
        })?);
    }
    if depth == DEPTH {
        return Err(invalid(format!("lists and maps are nested more than {DEPTH} deep")));
    }
    Ok(depth + 1)
}

/// The depth of one of this crate's lists and maps; `None` for every other object.
fn own_depth(object: &DynObject) -> Option<usize> {
    let list = object.downcast_ref::<List>().map(|list| list.depth);
    list.or_else(|| object.downcast_ref::<Dict>().map(|dict| dict.depth))
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if !Meter::spend(self.cost) {
            return Enumerator::Empty;
        }
        Enumerator::Seq(self.items.len())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        // As in Python, a list is no tuple; lists compare by their items, which minijinja does.
        let tuple = other.downcast_ref::<Self>()?.tuple;
        (self.tuple != tuple).then(|| self.tuple.cmp(&tuple))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render(Value::from_dyn_object(self.clone()), f)
    }
}

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        Some(self.entries[*self.index.get(key)?].1.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        if !Meter::spend(self.cost) {
            return Enumerator::Empty;
        }
        Enumerator::KeyValueIter(Box::new(Entries { dict: self.clone(), at: 0 }))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render(Value::from_dyn_object(self.clone()), f)
    }
}

struct Entries {
    dict: Arc<Dict>,
    at: usize,
}

impl Iterator for Entries {
    type Item = (Value, Value);

    fn next(&mut self) -> Option<(Value, Value)> {
        let entry = self.dict.entries.get(self.at)?.clone();
        self.at += 1;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.dict.entries.len() - self.at;
        (left, Some(left))
    }
}

/// Writes a list or map as Python does.
fn render(value: Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // An error here would be a panic in `to_string`: it shows at the next filter or output instead.
    let text = super::python::repr(&value).unwrap_or_else(|_| {
        Meter::spend(u64::MAX);
        String::new()
    });
    f.write_str(&text)
}

// Written out, so that nothing walks a value past the meter.
impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.items.len())
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of {}", self.entries.len())
    }
}

/// JSON as a template sees it; `None` where it is nested too deeply. Adds up how many values there
/// are and how long their texts.
pub(super) fn from_json(
    value: &serde_json::Value,
    values: &mut u64,
    bytes: &mut u64,
) -> Option<Value> {
    from_json_at(value, DEPTH, &mut |len| {
        *values += 1;
        *bytes += len as u64;
    })
}

/// A list of values; `None` where it is nested too deeply.
pub(super) fn list(items: Vec<Value>) -> Option<Value> {
    List::new(items, false).ok().map(Value::from_object)
}

fn from_json_at(
    value: &serde_json::Value,
    levels: usize,
    count: &mut impl FnMut(usize),
) -> Option<Value> {
    use serde_json::Value as Json;
    count(value.as_str().map_or(0, str::len));
    Some(match value {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::String(text) => Value::from(text.as_str()),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::Array(items) => {
            let levels = levels.checked_sub(1)?;
            let convert = |item| from_json_at(item, levels, count);
            list(items.iter().map(convert).collect::<Option<_>>()?)?
        }
        Json::Object(entries) => {
            let levels = levels.checked_sub(1)?;
            let mut pairs = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                count(key.len());
                pairs.push((Value::from(key.as_str()), from_json_at(value, levels, count)?));
            }
            Value::from_object(Dict::new(pairs).ok()?)
        }
    })
}

/// A value as this crate holds it: every list, tuple, iterator and plain map becomes a [`List`] or
/// a [`Dict`]; scalars, and what cannot be a part of them (namespaces, macros, loops), stay.
pub(super) fn own(state: &State, value: &Value) -> Result<Value, Error> {
    if Meter::is_empty() {
        return Err(out_of_fuel());
    }
    own_at(state, value, DEPTH)
}

fn own_at(state: &State, value: &Value, levels: usize) -> Result<Value, Error> {
    let Some(object) = value.as_object().filter(|object| own_depth(object).is_none()) else {
        return Ok(value.clone());
    };
    let levels = levels
        .checked_sub(1)
        .ok_or_else(|| invalid(format!("lists and maps are nested more than {DEPTH} deep")))?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                items.push(own_at(state, &item?, levels)?);
            }
            let tuple = object.downcast_ref::<Tuple>().is_some();
            Ok(Value::from_object(List::new(items, tuple)?))
        }
        ValueKind::Map if is_map(object) => {
            let mut entries = Vec::new();
            for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                state.consume_fuel(1)?;
                entries.push((key, own_at(state, &value, levels)?));
            }
            Ok(Value::from_object(Dict::new(entries)?))
        }
        _ => Ok(value.clone()),
    }
}

/// Whether an object is a map that a template wrote or was given, not a namespace or a loop.
pub(super) fn is_map(object: &DynObject) -> bool {
    // minijinja does not export the type that it makes of `{…}`.
    static PLAIN: OnceLock<Option<Value>> = OnceLock::new();
    let plain = PLAIN.get_or_init(|| {
        minijinja::functions::dict(None, std::iter::empty::<(&str, Value)>().collect()).ok()
    });
    let plain = plain.as_ref().and_then(Value::as_object);
    object.downcast_ref::<Dict>().is_some()
        || plain.is_some_and(|plain| plain.type_name() == object.type_name())
}
