//! From statements to programs: registers become slots, labels become instruction indices.

mod compare;
mod control;
mod convert;
mod data;
mod float;
mod integer;
mod matrix;
mod modifiers;
mod operands;

use std::collections::HashMap;

use crate::ast::{Function, Instruction, Operand, Statement, Unit, Variable};
use crate::fault::ParseError;
use crate::flow::set_meets;
use crate::op::{Inst, Op, Slot};
use crate::parse::parse;
use crate::program::{Program, Special};
use crate::types::{Space, Ty};
use modifiers::Modifiers;

type Parsed<T> = Result<T, ParseError>;

pub(crate) struct Decoded {
    pub programs: Vec<Program>,
    pub globals: Vec<u8>,
    pub constants: Vec<u8>,
}

/// Parses and decodes a module.
pub(crate) fn decode(text: &str) -> Parsed<Decoded> {
    let unit = parse(text)?;
    let mut layout = Layout::default();
    for variable in &unit.variables {
        let image = match variable.space {
            Space::Global => &mut layout.globals,
            Space::Const => &mut layout.constants,
            _ => continue,
        };
        let at = image.len().next_multiple_of(variable.align.max(1) as usize);
        image.resize(at, 0);
        // Variables without an initialiser are zero ("Initializers").
        image.extend(variable.initial.clone().unwrap_or_else(|| vec![0; variable.bytes as usize]));
        layout.places.insert(variable.name.clone(), (variable.space, at as u64));
    }
    let programs = unit
        .functions
        .iter()
        .filter(|function| function.entry)
        .map(|entry| Body::decode(&unit, &layout, entry))
        .collect::<Parsed<_>>()?;
    Ok(Decoded { programs, globals: layout.globals, constants: layout.constants })
}

#[derive(Default)]
struct Layout {
    globals: Vec<u8>,
    constants: Vec<u8>,
    places: HashMap<String, (Space, u64)>,
}

/// Names of one brace scope.
#[derive(Default)]
struct Scope {
    parent: Option<usize>,
    registers: HashMap<String, (Ty, Slot)>,
    variables: HashMap<String, (Space, u64)>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<String>>,
}

/// A `.func` that an entry reaches.
struct Callee {
    link: Slot,
    /// Frame offset and size of each parameter and result.
    params: Vec<(u32, u32)>,
    results: Vec<(u32, u32)>,
}

/// A label that must be resolved once its function is complete.
struct Fixup {
    scope: usize,
    label: String,
    line: u32,
    place: Place,
}

enum Place {
    Branch(u32),
    Table(usize, usize),
}

/// An entry being decoded, with the functions it calls.
struct Body<'a> {
    unit: &'a Unit,
    layout: &'a Layout,
    program: Program,
    scopes: Vec<Scope>,
    scope: usize,
    fixups: Vec<Fixup>,
    callees: HashMap<String, Callee>,
    queue: Vec<String>,
    /// Call sites whose target is known once the callee is decoded.
    calls: Vec<(usize, String)>,
    constants: HashMap<(bool, u64), Slot>,
    specials: HashMap<Special, Slot>,
    shared: HashMap<String, u64>,
    /// The link register, within a `.func`.
    link: Option<Slot>,
    line: u32,
}

impl<'a> Body<'a> {
    fn decode(unit: &'a Unit, layout: &'a Layout, entry: &Function) -> Parsed<Program> {
        let program = Program {
            name: entry.name.clone(),
            max_threads: entry.max_threads,
            exact_threads: entry.exact_threads,
            ..Program::default()
        };
        let mut body = Body {
            unit,
            layout,
            program,
            scopes: vec![Scope::default()],
            scope: 0,
            fixups: Vec::new(),
            callees: HashMap::new(),
            queue: Vec::new(),
            calls: Vec::new(),
            constants: HashMap::new(),
            specials: HashMap::new(),
            shared: HashMap::new(),
            link: None,
            line: entry.line,
        };
        body.place_shared(entry);
        for param in &entry.params {
            let at = body.program.param_bytes.next_multiple_of(param.align.max(1));
            body.program.param_bytes = at + param.bytes;
            body.scopes[0].variables.insert(param.name.clone(), (Space::Param, at.into()));
        }
        body.function(entry)?;
        let mut starts = HashMap::new();
        let mut next = 0;
        while let Some(name) = body.queue.get(next).cloned() {
            next += 1;
            starts.insert(name.clone(), body.program.insts.len() as u32);
            body.callee(&name)?;
        }
        body.check_recursion(entry)?;
        for (call, name) in &body.calls {
            body.program.calls[*call].target = starts[name];
        }
        Ok(body.program)
    }

    /// Static shared variables in reach of the entry, then the dynamic ones behind them.
    fn place_shared(&mut self, entry: &Function) {
        let mut reached: Vec<&Function> = vec![entry];
        let mut at = 0;
        while at < reached.len() {
            for name in names(reached[at]) {
                if let Some(callee) = self.unit.functions.iter().find(|callee| callee.name == name)
                    && !reached.iter().any(|function| function.name == name)
                {
                    reached.push(callee);
                }
            }
            at += 1;
        }
        let local = reached.iter().flat_map(|function| &function.body).filter_map(|statement| match statement {
            Statement::Variable(variable) => Some(variable),
            _ => None,
        });
        let used: Vec<String> = reached.iter().flat_map(|function| names(function)).collect();
        let module = self.unit.variables.iter().filter(|variable| used.contains(&variable.name));
        let all: Vec<&Variable> = local.chain(module).filter(|variable| variable.space == Space::Shared).collect();
        for dynamic in [false, true] {
            for variable in all.iter().filter(|variable| variable.dynamic == dynamic) {
                let at = self.program.shared_bytes.next_multiple_of(variable.align.max(1));
                self.program.shared_bytes = at + variable.bytes;
                self.program.uses_dynamic |= dynamic;
                self.shared.insert(variable.name.clone(), at.into());
            }
        }
    }

    /// Reserves bytes of local memory.
    fn frame(&mut self, variable: &Variable) -> u32 {
        let at = self.program.local_bytes.next_multiple_of(variable.align.max(1));
        self.program.local_bytes = at + variable.bytes;
        at
    }

    fn callee(&mut self, name: &str) -> Parsed<()> {
        let unit = self.unit;
        let Some(function) = unit.functions.iter().find(|function| function.name == name) else {
            return self.fail(format!("function {name} has no body"));
        };
        let callee = &self.callees[name];
        self.link = Some(callee.link);
        let frames = callee.params.iter().chain(&callee.results).map(|&(at, _)| u64::from(at)).collect::<Vec<_>>();
        let mut scope = Scope::default();
        for (variable, at) in function.params.iter().chain(&function.results).zip(frames) {
            scope.variables.insert(variable.name.clone(), (Space::Local, at));
        }
        self.scopes.push(scope);
        self.scope = self.scopes.len() - 1;
        self.function(function)
    }

    /// The function's link register and frame, made at the first call.
    fn reach(&mut self, name: &str) -> Parsed<()> {
        if self.callees.contains_key(name) {
            return Ok(());
        }
        let unit = self.unit;
        let Some(function) = unit.functions.iter().find(|function| function.name == name && !function.entry) else {
            return self.fail(format!("call of the unknown function {name}"));
        };
        let link = self.new_slot(Ty::B32, &format!("link of {name}"));
        let mut place = |list: &[Variable]| list.iter().map(|v| (self.frame(v), v.bytes)).collect::<Vec<_>>();
        let (params, results) = (place(&function.params), place(&function.results));
        self.callees.insert(name.to_string(), Callee { link, params, results });
        self.queue.push(name.to_string());
        Ok(())
    }

    /// Registers are static, so a function must not reach itself.
    fn check_recursion(&self, entry: &Function) -> Parsed<()> {
        fn visit(unit: &Unit, function: &Function, path: &mut Vec<String>) -> Parsed<()> {
            for name in names(function) {
                if let Some(callee) = unit.functions.iter().find(|callee| callee.name == name) {
                    if path.contains(&name) {
                        return Err(ParseError::new(function.line, format!("{name} is recursive")));
                    }
                    path.push(name);
                    visit(unit, callee, path)?;
                    path.pop();
                }
            }
            Ok(())
        }
        visit(self.unit, entry, &mut Vec::new())
    }

    fn function(&mut self, function: &Function) -> Parsed<()> {
        let start = self.program.insts.len() as u32;
        let root = self.scope;
        for statement in &function.body {
            match statement {
                Statement::Open => {
                    self.scopes.push(Scope { parent: Some(self.scope), ..Scope::default() });
                    self.scope = self.scopes.len() - 1;
                }
                Statement::Close => self.scope = self.scopes[self.scope].parent.unwrap_or(root),
                Statement::Register { name, count, ty, line } => {
                    self.line = *line;
                    self.register(name, *count, *ty)?;
                }
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Label { name, line } => {
                    let here = self.program.insts.len() as u32;
                    if self.scopes[self.scope].labels.insert(name.clone(), here).is_some() {
                        return Err(ParseError::new(*line, format!("label {name} is defined twice")));
                    }
                }
                Statement::Targets { name, labels } => {
                    self.scopes[self.scope].tables.insert(name.clone(), labels.clone());
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        // Falling off the end leaves the function.
        self.line = function.line;
        let last = self.leave();
        self.push(last, "ret", (function.line, "(end of function)".to_string()));
        self.resolve()?;
        let end = self.program.insts.len() as u32;
        set_meets(&mut self.program.insts, start..end, &self.program.tables);
        Ok(())
    }

    /// What `ret` does here.
    fn leave(&self) -> Op {
        match self.link {
            Some(link) => Op::Return { link },
            None => Op::Exit,
        }
    }

    fn push(&mut self, op: Op, opcode: &str, text: (u32, String)) {
        self.program.insts.push(Inst { op, guard: None });
        self.program.opcodes.push(opcode.to_string());
        self.program.texts.push(text);
    }

    fn register(&mut self, name: &str, count: Option<u32>, ty: Ty) -> Parsed<()> {
        let names: Vec<String> = match count {
            Some(count) => (0..count).map(|index| format!("{name}{index}")).collect(),
            None => vec![name.to_string()],
        };
        for name in names {
            let slot = self.new_slot(ty, &name);
            if self.scopes[self.scope].registers.insert(name.clone(), (ty, slot)).is_some() {
                return self.fail(format!("register {name} is declared twice"));
            }
        }
        Ok(())
    }

    fn variable(&mut self, variable: &Variable) -> Parsed<()> {
        let place = match variable.space {
            // `.param` within a body is the frame of a call.
            Space::Local | Space::Param => (Space::Local, u64::from(self.frame(variable))),
            Space::Shared => (Space::Shared, self.shared[&variable.name]),
            _ => return self.fail(format!("{} must be declared at module scope", variable.name)),
        };
        self.scopes[self.scope].variables.insert(variable.name.clone(), place);
        Ok(())
    }

    /// Looks a name up in the scopes from `scope` outwards.
    fn find<T>(&self, mut scope: usize, get: impl Fn(&Scope) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = get(&self.scopes[scope]) {
                return Some(found);
            }
            scope = self.scopes[scope].parent?;
        }
    }

    fn resolve(&mut self) -> Parsed<()> {
        for fixup in std::mem::take(&mut self.fixups) {
            let Some(found) = self.find(fixup.scope, |scope| scope.labels.get(&fixup.label).copied()) else {
                return Err(ParseError::new(fixup.line, format!("label {} is not defined", fixup.label)));
            };
            match fixup.place {
                Place::Branch(at) => {
                    if let Op::Branch { target, .. } = &mut self.program.insts[at as usize].op {
                        *target = found;
                    }
                }
                Place::Table(table, index) => self.program.tables[table][index] = found,
            }
        }
        Ok(())
    }

    fn instruction(&mut self, ins: &Instruction) -> Parsed<()> {
        self.line = ins.line;
        let guard = match &ins.guard {
            Some((name, negated)) => {
                let mut pred = self.predicate(&Operand::Name(name.clone()))?;
                pred.negated = *negated;
                Some(pred)
            }
            None => None,
        };
        let first = self.program.insts.len();
        let mut mods = Modifiers::new(&ins.opcode, &ins.modifiers, ins.line);
        let ops = &ins.operands;
        let op = match ins.opcode.as_str() {
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "bar" | "barrier" | "vote" | "shfl" | "match"
            | "redux" | "activemask" | "membar" | "fence" | "nanosleep" => self.control(ins, &mut mods, ops)?,
            "mma" | "ldmatrix" => self.matrix(&ins.opcode, &mut mods, ops)?,
            "mov" | "ld" | "ldu" | "st" | "cvta" | "isspacep" | "atom" | "red" | "cp" | "prefetch" | "prefetchu" => {
                self.data(&ins.opcode, &mut mods, ops)?
            }
            "setp" | "set" | "selp" | "slct" | "testp" => self.compare(&ins.opcode, &mut mods, ops)?,
            "cvt" => self.convert(&mut mods, ops)?,
            "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "fma" | "copysign" => {
                self.float(&ins.opcode, &mut mods, ops)?
            }
            "add" | "sub" | "mul" | "mad" | "div" | "abs" | "neg" | "min" | "max"
                if mods.first_type().is_some_and(Ty::is_float) =>
            {
                self.float(&ins.opcode, &mut mods, ops)?
            }
            _ => self.integer(&ins.opcode, &mut mods, ops)?,
        };
        mods.finish()?;
        let mut opcode = ins.opcode.clone();
        for modifier in &ins.modifiers {
            opcode.push('.');
            opcode.push_str(modifier);
        }
        self.push(op, &opcode, (ins.line, ins.text.clone()));
        if matches!(op, Op::Call(_)) {
            self.after_call()?;
        }
        if guard.is_some() && (matches!(op, Op::Call(_))) {
            return self.fail("a guarded call is not understood");
        }
        self.program.insts[first].guard = guard;
        Ok(())
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(ParseError::new(self.line, message))
    }
}

/// The names that occur in the operands of a function.
fn names(function: &Function) -> Vec<String> {
    fn collect(operand: &Operand, out: &mut Vec<String>) {
        match operand {
            Operand::Name(name) if !name.starts_with(['%', '$']) => out.push(name.clone()),
            Operand::Address(base, _) => collect(base, out),
            Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|operand| collect(operand, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    for statement in &function.body {
        if let Statement::Instruction(instruction) = statement {
            instruction.operands.iter().for_each(|operand| collect(operand, &mut out));
        }
    }
    out
}
