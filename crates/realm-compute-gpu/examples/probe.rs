//! Prints what the GPU backends find on this machine:
//! `cargo run -p realm-compute-gpu --features cuda,wgpu --example probe`.

fn main() {
    for probe in realm_compute_gpu::probe() {
        match probe.devices {
            Ok(devices) => devices.iter().for_each(|device| println!("{device}")),
            Err(reason) => println!("no {}: {reason}", probe.backend),
        }
    }
}
