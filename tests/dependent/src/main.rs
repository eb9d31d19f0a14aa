//! Opens a packed model through the library and shows what is in it; the README's example.

use aquatint::format::Packed;

fn main() -> aquatint::Result<()> {
    let path = std::env::args().nth(1).expect("the file to open");
    let packed = Packed::open(&path)?;
    packed.verify()?;
    for program in packed.programs() {
        println!("{}: {} ops", program.role.name(), program.nodes.len());
    }
    println!("{} tensors in {} bytes", packed.tensors().len(), packed.as_bytes().len());
    Ok(())
}
