//! What a guest reads from the service.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{World, guest_address};

/// Connects to the service from an address of the calling thread's namespace.
pub async fn connect(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(([169, 254, 169, 254], 80).into()).await
}

/// The whole answer to a request on a new connection.
pub async fn get(from: Ipv4Addr, path: &str) -> std::io::Result<String> {
    let mut stream = connect(from).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The whole answer to the guest with this number, which must come within `limit`.
pub fn read(world: &World, number: u8, path: &'static str, limit: Duration) -> String {
    let from = guest_address(number);
    world.guests.run(move || async move {
        timeout(limit, get(from, path))
            .await
            .expect("in time")
            .expect("an answer")
    })
}
