//! The modifiers of an instruction; every one must be understood.

use crate::fault::ParseError;
use crate::types::{Round, Ty};

pub(super) struct Modifiers {
    list: Vec<String>,
    opcode: String,
    line: u32,
}

impl Modifiers {
    pub fn new(opcode: &str, list: &[String], line: u32) -> Modifiers {
        Modifiers { list: list.to_vec(), opcode: opcode.to_string(), line }
    }

    /// Takes a modifier if it is present.
    pub fn take(&mut self, name: &str) -> bool {
        match self.list.iter().position(|modifier| modifier == name) {
            Some(at) => {
                self.list.remove(at);
                true
            }
            None => false,
        }
    }

    pub fn take_all(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Takes the first of several alternatives that is present.
    pub fn one_of<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(name, _)| self.take(name)).map(|&(_, value)| value)
    }

    pub fn need<T: Copy>(&mut self, choices: &[(&str, T)]) -> Result<T, ParseError> {
        self.one_of(choices).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|choice| choice.0).collect();
            self.error(format!("{} needs one of {}", self.opcode, names.join(", ")))
        })
    }

    /// Takes the first type.
    pub fn ty(&mut self) -> Result<Ty, ParseError> {
        let found = self.list.iter().enumerate().find_map(|(at, name)| Ty::from_name(name).map(|ty| (at, ty)));
        match found {
            Some((at, ty)) => {
                self.list.remove(at);
                Ok(ty)
            }
            None => Err(self.error(format!("{} needs a type", self.opcode))),
        }
    }

    /// The first modifier left, for dispatch.
    pub fn first_type(&self) -> Option<Ty> {
        self.list.iter().find_map(|name| Ty::from_name(name))
    }

    pub fn rounding(&mut self) -> Option<Round> {
        self.one_of(&[("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)])
    }

    pub fn integer_rounding(&mut self) -> Option<Round> {
        self.one_of(&[("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)])
    }

    pub fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::new(self.line, message)
    }

    /// Refuses modifiers that nothing took.
    pub fn finish(&self) -> Result<(), ParseError> {
        match self.list.first() {
            None => Ok(()),
            Some(left) => Err(self.error(format!("{}: modifier .{left} is not understood", self.opcode))),
        }
    }
}
