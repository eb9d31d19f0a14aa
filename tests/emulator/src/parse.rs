//! Tokens to statements: directives, declarations and instructions ("Directives", "Instruction Statements").

use crate::ast::{Function, Instruction, Operand, Statement, Unit, Variable};
use crate::fault::ParseError;
use crate::lex::{Tok, Token, tokens};
use crate::types::{Space, Ty};

type Parsed<T> = Result<T, ParseError>;

/// Parses a whole module.
pub(crate) fn parse(text: &str) -> Parsed<Unit> {
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0 };
    let mut unit = Unit::default();
    while let Some(token) = parser.tokens.get(parser.at).cloned() {
        let Tok::Word(word) = &token.tok else {
            return Err(ParseError::new(token.line, "expected a directive"));
        };
        match word.as_str() {
            ".version" | ".target" | ".address_size" | ".file" => parser.skip_line(token.line),
            ".visible" | ".weak" | ".common" => parser.at += 1,
            ".section" => parser.skip_block()?,
            ".extern" => {
                parser.at += 1;
                if parser.peek_word() == Some(".func") {
                    parser.at += 1;
                    parser.function(false)?;
                } else {
                    unit.variables.push(parser.variable(true)?);
                }
            }
            ".entry" | ".func" => {
                parser.at += 1;
                if let Some(function) = parser.function(word == ".entry")? {
                    unit.functions.push(function);
                }
            }
            ".global" | ".const" | ".shared" => unit.variables.push(parser.variable(false)?),
            other => return Err(ParseError::new(token.line, format!("unknown directive {other}"))),
        }
    }
    Ok(unit)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.line)
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(ParseError::new(self.line(), message))
    }

    fn peek(&self) -> Option<&Tok> {
        self.tokens.get(self.at).map(|token| &token.tok)
    }

    fn peek_word(&self) -> Option<&str> {
        match self.peek() {
            Some(Tok::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn take(&mut self, punct: u8) -> bool {
        let found = self.peek() == Some(&Tok::Punct(punct));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punct: u8) -> Parsed<()> {
        if self.take(punct) { Ok(()) } else { self.fail(format!("expected {:?}", punct as char)) }
    }

    fn word(&mut self) -> Parsed<String> {
        match self.peek_word() {
            Some(word) => {
                let word = word.to_string();
                self.at += 1;
                Ok(word)
            }
            None => self.fail("expected a name"),
        }
    }

    fn integer(&mut self) -> Parsed<u64> {
        let negative = self.take(b'-');
        match self.peek() {
            Some(&Tok::Int(value)) => {
                self.at += 1;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => self.fail("expected an integer"),
        }
    }

    fn skip_line(&mut self, line: u32) {
        while self.tokens.get(self.at).is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    /// Skips a debugging section, braces included.
    fn skip_block(&mut self) -> Parsed<()> {
        while !self.take(b'}') {
            if self.at >= self.tokens.len() {
                return self.fail("unterminated section");
            }
            self.at += 1;
        }
        Ok(())
    }

    /// `.func (results) name (params) directives { body }`, or a declaration, which is dropped.
    fn function(&mut self, entry: bool) -> Parsed<Option<Function>> {
        let line = self.line();
        let results = if self.peek() == Some(&Tok::Punct(b'(')) { self.parameters()? } else { Vec::new() };
        let name = self.word()?;
        let params = if self.peek() == Some(&Tok::Punct(b'(')) { self.parameters()? } else { Vec::new() };
        let mut function =
            Function { name, entry, results, params, max_threads: None, exact_threads: false, body: Vec::new(), line };
        loop {
            if self.take(b';') {
                return Ok(None);
            }
            if self.take(b'{') {
                break;
            }
            match self.word()?.as_str() {
                word @ (".maxntid" | ".reqntid") => {
                    let mut shape = [self.integer()? as u32, 1, 1];
                    for size in &mut shape[1..] {
                        if self.take(b',') {
                            *size = self.integer()? as u32;
                        }
                    }
                    function.max_threads = Some(shape);
                    function.exact_threads = word == ".reqntid";
                }
                ".minnctapersm" | ".maxnreg" => {
                    self.integer()?;
                }
                ".noreturn" => {}
                ".pragma" => self.pragma()?,
                other => return self.fail(format!("unknown function directive {other}")),
            }
        }
        let mut depth = 0;
        loop {
            if self.take(b'{') {
                depth += 1;
                function.body.push(Statement::Open);
            } else if self.take(b'}') {
                if depth == 0 {
                    return Ok(Some(function));
                }
                depth -= 1;
                function.body.push(Statement::Close);
            } else {
                self.statement(&mut function.body)?;
            }
        }
    }

    fn pragma(&mut self) -> Parsed<()> {
        match self.peek() {
            Some(Tok::Text(_)) => self.at += 1,
            _ => return self.fail("expected a string"),
        }
        self.take(b';');
        Ok(())
    }

    fn parameters(&mut self) -> Parsed<Vec<Variable>> {
        self.expect(b'(')?;
        let mut params = Vec::new();
        while !self.take(b')') {
            if self.peek_word() != Some(".param") {
                return self.fail("only .param parameters are understood");
            }
            params.push(self.declaration(false)?);
            self.take(b',');
        }
        Ok(params)
    }

    fn variable(&mut self, is_extern: bool) -> Parsed<Variable> {
        let variable = self.declaration(is_extern)?;
        self.expect(b';')?;
        Ok(variable)
    }

    /// `.space .align n .type name[size] = {...}`, without the semicolon.
    fn declaration(&mut self, is_extern: bool) -> Parsed<Variable> {
        let line = self.line();
        let space = match self.word()?.as_str() {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            ".param" => Space::Param,
            other => return Err(ParseError::new(line, format!("unknown state space {other}"))),
        };
        let (mut align, mut ty) = (None, None);
        let mut lanes = 1;
        while let Some(word) = self.peek_word().filter(|word| word.starts_with('.')).map(str::to_string) {
            self.at += 1;
            match word.as_str() {
                ".align" => align = Some(self.integer()? as u32),
                ".ptr" | ".global" | ".shared" | ".const" => {}
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                _ => match Ty::from_name(&word[1..]) {
                    Some(found) => ty = Some(found),
                    None => return Err(ParseError::new(line, format!("unknown declaration modifier {word}"))),
                },
            }
        }
        let Some(ty) = ty.filter(|ty| *ty != Ty::Pred) else { return self.fail("a declaration needs a type") };
        let name = self.word()?;
        let mut count = 1;
        let mut unsized_array = false;
        while self.take(b'[') {
            if self.take(b']') {
                unsized_array = true;
            } else {
                count *= self.integer()? as u32;
                self.expect(b']')?;
            }
        }
        let element = ty.bytes() * lanes;
        let mut initial = None;
        if self.take(b'=') {
            let mut bytes = Vec::new();
            if self.take(b'{') {
                while !self.take(b'}') {
                    self.initialiser(ty, &mut bytes)?;
                    self.take(b',');
                }
            } else {
                self.initialiser(ty, &mut bytes)?;
            }
            if unsized_array {
                count = bytes.len() as u32 / element;
                unsized_array = false;
            }
            if bytes.len() > (count * element) as usize {
                return self.fail("more initial values than elements");
            }
            bytes.resize((count * element) as usize, 0);
            initial = Some(bytes);
        }
        if unsized_array && !(is_extern && space == Space::Shared) {
            return self.fail("an unsized array must be .extern .shared");
        }
        if is_extern && !unsized_array {
            return self.fail("external variables are not linked");
        }
        let bytes = if unsized_array { 0 } else { count * element };
        Ok(Variable { name, space, align: align.unwrap_or(element), bytes, dynamic: unsized_array, initial })
    }

    fn initialiser(&mut self, ty: Ty, bytes: &mut Vec<u8>) -> Parsed<()> {
        let value = match self.peek() {
            Some(&Tok::F32(bits)) if ty.bits() == 32 => {
                self.at += 1;
                u64::from(bits)
            }
            Some(&Tok::F64(bits)) if ty.bits() == 64 => {
                self.at += 1;
                bits
            }
            _ => self.integer()?,
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..ty.bytes() as usize]);
        Ok(())
    }

    fn statement(&mut self, body: &mut Vec<Statement>) -> Parsed<()> {
        let line = self.line();
        match self.peek() {
            Some(Tok::Punct(b'@')) => return self.instruction(body),
            Some(Tok::Punct(b';')) => {
                self.at += 1;
                return Ok(());
            }
            Some(Tok::Word(_)) => {}
            _ => return self.fail("expected a statement"),
        }
        let word = self.peek_word().unwrap_or_default().to_string();
        match word.as_str() {
            ".reg" => {
                self.at += 1;
                self.registers(body)
            }
            ".local" | ".shared" | ".param" | ".const" | ".global" => {
                body.push(Statement::Variable(self.variable(false)?));
                Ok(())
            }
            ".pragma" => {
                self.at += 1;
                self.pragma()
            }
            ".loc" => {
                self.skip_line(line);
                Ok(())
            }
            _ if word.starts_with('.') => self.fail(format!("unknown directive {word}")),
            _ if self.tokens.get(self.at + 1).is_some_and(|token| token.tok == Tok::Punct(b':')) => {
                self.at += 2;
                if self.peek_word() != Some(".branchtargets") {
                    body.push(Statement::Label { name: word, line });
                    return Ok(());
                }
                self.at += 1;
                let mut labels = vec![self.word()?];
                while self.take(b',') {
                    labels.push(self.word()?);
                }
                self.expect(b';')?;
                body.push(Statement::Targets { name: word, labels });
                Ok(())
            }
            _ => self.instruction(body),
        }
    }

    fn registers(&mut self, body: &mut Vec<Statement>) -> Parsed<()> {
        let line = self.line();
        let name = self.word()?;
        let Some(ty) = name.strip_prefix('.').and_then(Ty::from_name) else {
            return Err(ParseError::new(line, format!("unknown register type {name}")));
        };
        loop {
            let name = self.word()?;
            let mut count = None;
            if self.take(b'<') {
                count = Some(self.integer()? as u32);
                self.expect(b'>')?;
            }
            body.push(Statement::Register { name, count, ty, line });
            if !self.take(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instruction(&mut self, body: &mut Vec<Statement>) -> Parsed<()> {
        let line = self.line();
        let start = self.tokens[self.at].span.0;
        let mut guard = None;
        if self.take(b'@') {
            let negated = self.take(b'!');
            guard = Some((self.word()?, negated));
        }
        let word = self.word()?;
        let mut parts = word.split('.').map(str::to_string);
        let opcode = parts.next().unwrap_or_default();
        let modifiers = parts.collect();
        let mut operands = Vec::new();
        if !self.take(b';') {
            loop {
                operands.push(self.operand()?);
                if self.take(b';') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        let end = self.tokens[self.at - 1].span.1;
        let text = self.text[start..end].split_whitespace().collect::<Vec<_>>().join(" ");
        body.push(Statement::Instruction(Instruction { line, text, guard, opcode, modifiers, operands }));
        Ok(())
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let Some(tok) = self.peek().cloned() else { return self.fail("expected an operand") };
        self.at += 1;
        Ok(match tok {
            Tok::Word(name) => {
                if self.take(b'|') {
                    Operand::Pair(name, self.word()?)
                } else {
                    Operand::Name(name)
                }
            }
            Tok::Int(value) => Operand::Int(value),
            Tok::F32(bits) => Operand::F32(bits),
            Tok::F64(bits) => Operand::F64(bits),
            Tok::Punct(b'-') => Operand::Int(self.integer()?.wrapping_neg()),
            Tok::Punct(b'!') => Operand::Not(self.word()?),
            Tok::Punct(b'{') => Operand::Vector(self.operands_until(b'}')?),
            Tok::Punct(b'(') => Operand::List(self.operands_until(b')')?),
            Tok::Punct(b'[') => {
                let base = self.operand()?;
                let mut offset = 0i64;
                if self.take(b'+') || self.peek() == Some(&Tok::Punct(b'-')) {
                    offset = self.integer()? as i64;
                }
                self.expect(b']')?;
                Operand::Address(Box::new(base), offset)
            }
            _ => {
                self.at -= 1;
                return self.fail("expected an operand");
            }
        })
    }

    fn operands_until(&mut self, close: u8) -> Parsed<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.take(close) {
            list.push(self.operand()?);
            self.take(b',');
        }
        Ok(list)
    }
}
