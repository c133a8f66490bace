//! `cargo run -p waifud-images --example build-image -- tiny [CACHE_DIR]`: builds one guest and says what came out.

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let guest = args.next().unwrap_or_else(|| "tiny".to_owned()).parse()?;
    let cache = args
        .next()
        .map_or_else(waifud_images::default_cache_dir, PathBuf::from);
    let built = waifud_images::build(guest, &cache, &|line| eprintln!("{guest}: {line}"))?;
    println!("{built:#?}");
    Ok(())
}
