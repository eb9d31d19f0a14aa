//! Opcodes that name and call code, as descriptions: nothing is looked up and nothing is called.

use super::machine::{Outcome, Reader};
use super::{Id, Value};

/// Bytes of the longest name of a class or function.
const MAX_NAME: usize = 256;

/// Opcodes that plain data does not need, with the name Python's `pickletools` gives them.
const CODE: &[(u8, &str)] = &[
    (b'P', "PERSID"),
    (b'Q', "BINPERSID"),
    (b'R', "REDUCE"),
    (b'b', "BUILD"),
    (b'c', "GLOBAL"),
    (b'i', "INST"),
    (b'o', "OBJ"),
    (0x81, "NEWOBJ"),
    (0x82, "EXT1"),
    (0x83, "EXT2"),
    (0x84, "EXT4"),
    (0x92, "NEWOBJ_EX"),
    (0x93, "STACK_GLOBAL"),
    (0x97, "NEXT_BUFFER"),
    (0x98, "READONLY_BUFFER"),
];

impl<'a> Reader<'a> {
    /// Executes an opcode that plain data does not need; what would be code becomes a description of it.
    pub(super) fn object(&mut self, op: u8) -> Outcome<()> {
        match op {
            b'c' | 0x93 => {
                let (module, name) = self.name(op)?;
                self.push(Value::Global { module, name })
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            b'R' | 0x81 | 0x92 => {
                // NEWOBJ_EX has keyword arguments on top.
                if op == 0x92 {
                    self.pop()?;
                }
                let (args, callee) = (self.pop()?, self.pop()?);
                let Value::Tuple(items) = &self.values[args.0 as usize] else {
                    return self.fail("call", "a tuple of arguments", "another value");
                };
                // Only functions are called plainly; the other two make objects.
                let plain = op == b'R';
                let empty_dict = plain && items.is_empty() && self.is_ordered_dict(callee);
                let call = Value::Call { callee, args, plain, state: None, offset: self.opcode };
                self.push(if empty_dict { Value::Dict(Vec::new()) } else { call })
            }
            b'b' => {
                self.pop()?;
                let top = self.top()?;
                let dict = match &self.values[top.0 as usize] {
                    Value::Call { callee, .. } => self.is_ordered_dict(*callee),
                    _ => false,
                };
                match &mut self.values[top.0 as usize] {
                    // Attributes beside a dict's entries: `_metadata` of a `state_dict`.
                    Value::Dict(_) | Value::Set => Ok(()),
                    // Python 2 makes it by a call, with its entries.
                    Value::Call { plain, .. } => {
                        *plain &= dict;
                        Ok(())
                    }
                    _ => self.fail("BUILD", "an object to give attributes to", "another value"),
                }
            }
            0x8f => self.push(Value::Set),
            0x91 => self.since_mark().and_then(|_| self.push(Value::Set)),
            0x90 => {
                self.since_mark()?;
                let top = self.top()?;
                match &mut self.values[top.0 as usize] {
                    Value::Set => Ok(()),
                    Value::Call { plain, .. } => {
                        *plain = false;
                        Ok(())
                    }
                    _ => self.fail("stack", "a set to add to", "another value"),
                }
            }
            0x96 => self.sized(8, |r, n| r.take(n).map(Value::Bytes)),
            other => self.unknown(other),
        }
    }

    /// Module and name of what GLOBAL or STACK_GLOBAL, which `op` is, would look up.
    pub(super) fn name(&mut self, op: u8) -> Outcome<(&'a str, &'a str)> {
        if op == b'c' {
            return Ok((self.line("name", MAX_NAME)?, self.line("name", MAX_NAME)?));
        }
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.values[module.0 as usize], &self.values[name.0 as usize]) {
            (&Value::Str(module), &Value::Str(name)) if module.len().max(name.len()) <= MAX_NAME => Ok((module, name)),
            _ => self.fail("STACK_GLOBAL", format!("two texts of at most {MAX_NAME} bytes"), "other values"),
        }
    }

    fn is_ordered_dict(&self, id: Id) -> bool {
        self.values[id.0 as usize] == Value::Global { module: "collections", name: "OrderedDict" }
    }

    pub(super) fn unknown<T>(&self, op: u8) -> Outcome<T> {
        let name = CODE.iter().find(|(code, _)| *code == op).map(|(_, name)| name);
        match name {
            Some(name) if self.objects => {
                self.fail("opcode", "opcodes that torch.save writes", format!("{name} (0x{op:02x})"))
            }
            Some(name) => self.fail(
                "opcode",
                "plain data (dict, list, tuple, text, numbers)",
                format!("{name} (0x{op:02x}), which runs code; this reader never does"),
            ),
            None if self.objects => self.fail("opcode", "opcodes that torch.save writes", format!("0x{op:02x}")),
            None => self.fail("opcode", "plain data of protocol 2 to 5", format!("0x{op:02x}")),
        }
    }

    /// A line of at most `longest` bytes of UTF-8, which is a `what`.
    pub(super) fn line(&mut self, what: &'static str, longest: usize) -> Outcome<&'a str> {
        let text = std::str::from_utf8(self.line_bytes(what, longest)?);
        text.or_else(|_| self.fail(what, "a line of UTF-8", "other bytes"))
    }

    /// The same, of any bytes.
    pub(super) fn line_bytes(&mut self, what: &'static str, longest: usize) -> Outcome<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let longest = longest.min(rest.len());
        match rest[..longest.saturating_add(1).min(rest.len())].iter().position(|&b| b == b'\n') {
            Some(n) => {
                self.at += n + 1;
                Ok(&rest[..n])
            }
            None => self.fail(what, format!("a line of at most {longest} bytes"), "none"),
        }
    }
}
