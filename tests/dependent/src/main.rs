//! Opens a packed model through the library, shows what is in it and runs a step; the README's example.

use aquatint::{Cpu, Model, Prompts, Request, Session};

fn main() -> aquatint::Result<()> {
    let path = std::env::args().nth(1).expect("the file to open");
    let packed = aquatint::open(&path)?;
    let model = Model::verify(&packed)?;
    for program in packed.programs() {
        println!("{}: {} ops", program.role.name(), program.nodes.len());
    }
    let cpu = Cpu::best();
    let mut request = Request::new(&model, Prompts::blank(&model, 1));
    request.steps = 1;
    let output = Session::new(&model, &cpu).run(request)?;
    println!("an image of {} x {} pixels", output.size[0], output.size[1]);
    Ok(())
}
