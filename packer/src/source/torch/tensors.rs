//! From a pickle's descriptions to tensors.
//!
//! The allow-list is this file: six calls and the storages are understood, by their names, and everything else stays
//! what it is, a description. A tensor below an object that is not understood cannot be reached.

use super::super::pickle::{Id, Pickle, Value};
use super::super::view::{Storage, View};
use super::{Contents, Fault, Outcome, fault, shown};
use safetensors::Dtype;
use std::collections::{HashMap, HashSet};

/// Dicts and lists that may lie in each other.
const MAX_NESTING: usize = 64;
/// Bytes of a tensor's longest name.
const MAX_NAME: usize = 1024;
/// Bytes of a storage's longest key; torch counts them or gives them addresses.
const MAX_KEY: usize = 64;
/// Objects that are remembered, for messages.
const MAX_OBJECTS: usize = 4096;
/// Work per byte of the pickle. A pickle that names nothing twice needs less; one that has the same dict in itself over
/// and over would otherwise give exponentially many tensors.
const WORK_PER_BYTE: usize = 8;

/// What a pickle says of a storage.
#[derive(Clone, Copy, Debug)]
pub(super) struct StorageId<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    /// Bytes of one element.
    pub size: usize,
    /// Number of elements.
    pub count: usize,
    /// Offset and number of elements of the part that is meant; only in the legacy format.
    pub part: Option<(usize, usize)>,
}

/// Functions of `torch._utils` that make tensors; the last makes one of a tensor.
const REBUILD: [&str; 4] = ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"];

/// The type of elements that a tensor names itself, since its storage does not: those that torch got last.
fn plain_type(module: &str, name: &str) -> Option<Dtype> {
    match (module, name) {
        ("torch", "float8_e4m3fn") => Some(Dtype::F8_E4M3),
        ("torch", "float8_e5m2") => Some(Dtype::F8_E5M2),
        _ => None,
    }
}

/// Type and size of a storage's elements, by the name of its class.
fn element(module: &str, class: &str) -> Option<(Dtype, usize)> {
    Some(match (module, class) {
        ("torch" | "torch.storage", "UntypedStorage") => (Dtype::U8, 1),
        ("torch" | "torch.cuda", _) => match class.strip_suffix("Storage")? {
            "Double" => (Dtype::F64, 8),
            "Float" => (Dtype::F32, 4),
            "Half" => (Dtype::F16, 2),
            "BFloat16" => (Dtype::BF16, 2),
            "Long" => (Dtype::I64, 8),
            "Int" => (Dtype::I32, 4),
            "Short" => (Dtype::I16, 2),
            "Char" => (Dtype::I8, 1),
            "Byte" => (Dtype::U8, 1),
            "Bool" => (Dtype::BOOL, 1),
            _ => return None,
        },
        _ => return None,
    })
}

/// All storages a pickle names: `('storage', class, key, location, elements[, part])`.
pub(super) fn storage_ids<'a>(pickle: &Pickle<'a>) -> Outcome<Vec<(Id, StorageId<'a>)>> {
    let mut ids = Vec::new();
    for (value, persistent) in pickle.values() {
        let Value::Persistent(id) = persistent else { continue };
        let items = pickle.tuple(*id).unwrap_or_default();
        match items.first().map(|kind| pickle.get(*kind)) {
            Some(Value::Str("storage")) => {}
            // The source text of a module's class, in the legacy format.
            Some(Value::Str("module")) => continue,
            _ => return fault("persistent id", "('storage', ...)", "another"),
        }
        let (class, key, count) = match items[1..] {
            [class, key, _, count] | [class, key, _, count, _] => (class, key, count),
            _ => return fault("storage", "5 or 6 fields", items.len().to_string()),
        };
        let Some((module, class)) = pickle.global(class) else {
            return fault("storage", "a class of storages", "another value");
        };
        let Some((dtype, size)) = element(module, class) else {
            let expected = "torch.FloatStorage, Half, BFloat16, Double, Long, Int, Short, Char, Byte or Bool";
            return fault("storage", expected, shown(&format!("{module}.{class}")));
        };
        let (Value::Str(key), Some(count)) = (pickle.get(key), whole(pickle, count)) else {
            return fault("storage", "text as key and a length", "another value");
        };
        if key.len() > MAX_KEY {
            return fault("storage", format!("a key of at most {MAX_KEY} bytes"), format!("{} bytes", key.len()));
        }
        let part = match items.get(5).map(|part| pickle.get(*part)) {
            None | Some(Value::None) => None,
            Some(Value::Tuple(part)) => match part[..] {
                [_, offset, count] => whole(pickle, offset).zip(whole(pickle, count)),
                _ => None,
            }
            .map_or_else(|| fault(format!("storage {}", shown(key)), "key, offset and length", "another part"), Ok)
            .map(Some)?,
            Some(_) => return fault(format!("storage {}", shown(key)), "a part of a storage or None", "another value"),
        };
        ids.push((value, StorageId { key, dtype, size, count, part }));
    }
    Ok(ids)
}

fn whole(pickle: &Pickle<'_>, id: Id) -> Option<usize> {
    match pickle.get(id) {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

/// All tensors that dicts, lists and tuples lead to from the root; `length` is that of the pickle.
pub(super) fn tensors(pickle: &Pickle<'_>, storages: &HashMap<Id, Storage>, length: usize) -> Outcome<Contents> {
    let mut walk = Walk {
        pickle,
        storages,
        found: HashMap::new(),
        objects: Vec::new(),
        name: String::new(),
        too_long: false,
        work: length.saturating_mul(WORK_PER_BYTE),
    };
    walk.visit(pickle.root_id(), 0)?;
    if walk.found.is_empty() {
        let object = walk.objects.first().map(|(name, what)| match &name[..] {
            "" => what.clone(),
            name => format!("{what} at {name}"),
        });
        let got = object.map_or("none".to_owned(), |o| format!("{o}; save the model's state_dict() instead"));
        return fault("object", "tensors in dicts or lists", got);
    }
    Ok(Contents { tensors: walk.found.into_iter().collect(), objects: walk.objects })
}

struct Walk<'p, 'a> {
    pickle: &'p Pickle<'a>,
    storages: &'p HashMap<Id, Storage>,
    found: HashMap<String, View>,
    objects: Vec<(String, String)>,
    /// Keys on the way to the present value, joined by dots.
    name: String,
    /// Whether a key on the way did not fit the name.
    too_long: bool,
    work: usize,
}

/// A key that a name can hold.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Text(&'a str),
    Number(i64),
}

impl<'p, 'a> Walk<'p, 'a> {
    fn spend(&mut self, work: usize) -> Outcome<()> {
        match self.work.checked_sub(work) {
            Some(left) => {
                self.work = left;
                Ok(())
            }
            None => fault("object", "dicts and lists that are not in each other over and over", "too many entries"),
        }
    }

    fn visit(&mut self, id: Id, depth: usize) -> Outcome<()> {
        self.spend(4)?;
        if depth > MAX_NESTING {
            return fault("object", format!("at most {MAX_NESTING} dicts and lists in each other"), "more");
        }
        match self.pickle.get(id) {
            Value::Dict(items) => self.dict(items.len(), |i| Some(items[i]), depth),
            Value::List(items) | Value::Tuple(items) => {
                for (i, &item) in items.iter().enumerate() {
                    self.below(&Key::Number(i as i64), item, depth)?;
                }
                Ok(())
            }
            &Value::Call { callee, args, plain, offset, .. } => self.call(callee, args, plain, offset, depth),
            &Value::Global { module, name } => {
                self.object("the name", module, name);
                Ok(())
            }
            Value::Persistent(_) => {
                self.object("a storage", "", "");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Visits the `count` entries of a dict; those that are no pairs are left out, and of equal keys the last counts.
    fn dict(&mut self, count: usize, entry: impl Fn(usize) -> Option<(Id, Id)>, depth: usize) -> Outcome<()> {
        let mut seen = HashSet::new();
        for i in (0..count).rev() {
            let Some((key, value)) = entry(i) else { continue };
            let key = match self.pickle.get(key) {
                Value::Str(text) => Key::Text(text),
                Value::Int(n) => Key::Number(*n),
                // No name can lead through other keys.
                _ => {
                    self.spend(4)?;
                    continue;
                }
            };
            // A key that is too long for a name is not worth looking at.
            let long = matches!(key, Key::Text(text) if text.len() > MAX_NAME);
            if long || !seen.contains(&key) {
                self.below(&key, value, depth)?;
            } else {
                self.spend(4)?;
            }
            if !long {
                seen.insert(key);
            }
        }
        Ok(())
    }

    fn below(&mut self, key: &Key<'_>, value: Id, depth: usize) -> Outcome<()> {
        let (length, too_long) = (self.name.len(), self.too_long);
        let number;
        let key = match key {
            Key::Text(text) => text,
            Key::Number(n) => {
                number = n.to_string();
                &number[..]
            }
        };
        if length + 1 + key.len() > MAX_NAME {
            self.too_long = true;
        } else {
            if depth > 0 {
                self.name.push('.');
            }
            self.name.push_str(key);
        }
        self.visit(value, depth + 1)?;
        self.name.truncate(length);
        self.too_long = too_long;
        Ok(())
    }

    /// Remembers an object that is not read.
    fn object(&mut self, what: &str, module: &str, name: &str) {
        if self.objects.len() < MAX_OBJECTS && !self.too_long {
            let dot = if module.is_empty() { "" } else { "." };
            self.objects.push((self.name.clone(), shown(&format!("{what} {module}{dot}{name}")).trim_end().to_owned()));
        }
    }

    fn call(&mut self, callee: Id, args: Id, plain: bool, offset: usize, depth: usize) -> Outcome<()> {
        let name = self.pickle.global(callee);
        let items = self.pickle.tuple(args).unwrap_or_default();
        match name {
            Some(("torch._utils", function)) if plain && REBUILD.contains(&function) => {
                let place = |fault: Fault, name: &str| fault.inside(&format!("byte {offset}: {}", shown(name)));
                let Some(view) = self.tensor(callee, items).map_err(|e| place(e, &self.name))? else {
                    self.object("a tensor of a type that is not read", "", "");
                    return Ok(());
                };
                self.insert(view).map_err(|e| place(e, &self.name))
            }
            // Python 2 gives an OrderedDict its entries as a list of lists.
            Some(("collections", "OrderedDict")) if plain && items.len() == 1 => {
                let Value::List(entries) = self.pickle.get(items[0]) else { return Ok(()) };
                let pickle = self.pickle;
                let pair = |i: usize| match pickle.get(entries[i]) {
                    Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
                    _ => None,
                };
                self.dict(entries.len(), pair, depth)
            }
            _ => {
                let (module, class) = name.unwrap_or(("", "of an unknown class"));
                self.object("an object", module, class);
                Ok(())
            }
        }
    }

    /// The tensor that a call with `items` would rebuild; none if its elements are of a type that is not known.
    fn tensor(&self, callee: Id, items: &[Id]) -> Outcome<Option<View>> {
        match self.pickle.global(callee) {
            Some((_, "_rebuild_tensor_v3")) => {
                let [storage, offset, size, stride, _, _, dtype, rest @ ..] = items else {
                    return fault(
                        "tensor",
                        "storage, offset, size, stride and type",
                        format!("{} arguments", items.len()),
                    );
                };
                let Some(dtype) = self.pickle.global(*dtype).and_then(|(module, name)| plain_type(module, name)) else {
                    return Ok(None);
                };
                self.view(&[*storage, *offset, *size, *stride], rest.first(), Some(dtype)).map(Some)
            }
            Some((_, "_rebuild_parameter")) => {
                let Some(&Value::Call { callee, args, plain: true, .. }) = items.first().map(|i| self.pickle.get(*i))
                else {
                    return fault("parameter", "a tensor as its data", "another value");
                };
                let items = self.pickle.tuple(args).unwrap_or_default();
                match self.pickle.global(callee) {
                    Some(("torch._utils", name)) if REBUILD[..3].contains(&name) => self.tensor(callee, items),
                    _ => fault("parameter", "a tensor as its data", "another object"),
                }
            }
            _ => self.view(items, items.get(6), None).map(Some),
        }
    }

    /// The elements that storage, offset, size and stride mean, of type `dtype` if it is not the storage's.
    fn view(&self, items: &[Id], metadata: Option<&Id>, dtype: Option<Dtype>) -> Outcome<View> {
        let [storage, offset, size, stride, ..] = items else {
            return fault("tensor", "storage, offset, size and stride", format!("{} arguments", items.len()));
        };
        let Some(storage) = self.storages.get(storage) else {
            return fault("tensor", "a storage", "another value");
        };
        // A conjugated or negated view has its sign beside its elements.
        match metadata.map(|metadata| self.pickle.get(*metadata)) {
            None | Some(Value::None) => {}
            Some(Value::Dict(bits)) if bits.is_empty() => {}
            Some(_) => return fault("tensor", "no metadata; save x.resolve_neg() instead", "some"),
        }
        let (Value::Int(offset), Some(size), Some(stride)) =
            (self.pickle.get(*offset), self.numbers(*size), self.numbers(*stride))
        else {
            return fault("tensor", "whole numbers as offset, size and stride", "other values");
        };
        let own = dtype.map(|dtype| Storage { dtype, size: dtype.bitsize() / 8, bytes: storage.bytes.clone() });
        View::strided(own.as_ref().unwrap_or(storage), *offset, &size, &stride).map_err(|(expected, got)| Fault {
            place: "tensor".into(),
            expected,
            got,
        })
    }

    /// A tuple of integers, or `torch.Size` of one; none if it is too long for any tensor.
    fn numbers(&self, id: Id) -> Option<Vec<i64>> {
        let items = match self.pickle.get(id) {
            &Value::Call { callee, args, plain: true, .. } if self.pickle.global(callee) == Some(("torch", "Size")) => {
                let args = self.pickle.tuple(args)?;
                self.pickle.tuple(*args.first()?)?
            }
            _ => self.pickle.tuple(id)?,
        };
        if items.len() > super::super::view::MAX_RANK {
            return None;
        }
        let number = |id: &Id| match self.pickle.get(*id) {
            Value::Int(n) => Some(*n),
            _ => None,
        };
        items.iter().map(number).collect()
    }

    fn insert(&mut self, view: View) -> Outcome<()> {
        if self.too_long {
            return fault("name", format!("at most {MAX_NAME} bytes"), "more");
        }
        self.spend(64 + self.name.len() + 16 * view.shape.len())?;
        match self.found.insert(self.name.clone(), view) {
            None => Ok(()),
            Some(_) => fault("name", "one tensor of this name", "two, one of them in a nested dict"),
        }
    }
}
