//! Which user is at the other end of a connection from this machine, as the kernel's tables of TCP sockets have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The tables, and whether their addresses are IPv6.
const TABLES: [(&str, bool); 2] = [("/proc/net/tcp", false), ("/proc/net/tcp6", true)];

/// The state of a connection that neither end has begun to close.
const ESTABLISHED: &str = "01";

/// Whether the other end `peer` of a connection to `own` is a process of this one's user, or of root, on this machine.
pub(super) fn is_own_user(peer: SocketAddr, own: SocketAddr) -> bool {
    let loopback = peer.ip().to_canonical().is_loopback();
    is_trusted(loopback.then(|| user(peer, own)).flatten(), nix::unistd::geteuid().as_raw())
}

/// A user who cannot be told is nobody.
fn is_trusted(user: Option<u32>, own: u32) -> bool {
    user.is_some_and(|user| user == 0 || user == own)
}

/// The user whose process has the end `peer` of a connection to `own`, both on this machine; none where that cannot be
/// told.
fn user(peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    TABLES.iter().find_map(|(table, v6)| find(&std::fs::read_to_string(table).ok()?, *v6, peer, own))
}

/// Looks for the socket in a table: its lines are number, local and remote address, state, four fields beside the
/// point among which is the user, and the inode. One that its process has closed already has no inode and counts as
/// root's: it is nobody's.
fn find(table: &str, v6: bool, peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let same = |field: &str, wanted: SocketAddr| {
        address(field, v6) == Some((wanted.ip().to_canonical(), wanted.port()))
    };
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().take(10).collect();
        match fields.as_slice() {
            [_, local, remote, ESTABLISHED, _, _, _, user, _, inode]
                if *inode != "0" && same(local, peer) && same(remote, own) =>
            {
                user.parse().ok()
            }
            _ => None,
        }
    })
}

/// An address of a table: words in the machine's order, in hexadecimal, and the port.
fn address(field: &str, v6: bool) -> Option<(IpAddr, u16)> {
    let (ip, port) = field.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match v6 {
        false => Ipv4Addr::from(word(0)?).into(),
        true => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[4 * at..4 * at + 4].copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_user_at_the_other_end_is_this_one() {
        let own = nix::unistd::geteuid().as_raw();
        for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let port = listener.local_addr().unwrap().port();
            let host = if bind.starts_with("[::1]") { "[::1]" } else { "127.0.0.1" };
            let caller = TcpStream::connect(format!("{host}:{port}")).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            assert_eq!(user(peer, stream.local_addr().unwrap()), Some(own), "{bind}");
            let other = SocketAddr::new(peer.ip(), peer.port() ^ 1);
            assert_eq!(user(other, stream.local_addr().unwrap()), None);
            // What a process has left behind is nobody's, and not root's as the kernel has it. A test beside this one
            // may just have forked, and its child has the socket too until it begins another program.
            drop(caller);
            let until = Instant::now() + Duration::from_secs(10);
            while user(peer, stream.local_addr().unwrap()).is_some() {
                assert!(Instant::now() < until, "{bind}: what was left behind is somebody's");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn this_user_and_root_are_trusted_and_nobody_else() {
        for (user, trusted) in [(Some(1000), true), (Some(0), true), (Some(1001), false), (None, false)] {
            assert_eq!(is_trusted(user, 1000), trusted, "{user:?}");
        }
        let stranger = "10.0.0.1:5".parse().unwrap();
        assert!(!is_own_user(stranger, "10.0.0.2:4747".parse().unwrap()));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_table_is_read_as_the_kernel_writes_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:9C40 0100007F:128B 01 00000000:00000000 00:00000000 00000000  1234        0 5 1\n   \
                     1: 0100007F:128B 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 6 1\n   \
                     2: 0100007F:9C41 0100007F:128B 01 00000000:00000000 00:00000000 00000000     0        0 0 1\n   \
                     3: 0100007F:9C42 0100007F:128B 05 00000000:00000000 00:00000000 00000000     0        0 7 1\n";
        let (peer, own) = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:4747".parse().unwrap());
        assert_eq!(find(table, false, peer, own), Some(1234));
        assert_eq!(find(table, false, own, peer), Some(0));
        assert_eq!(find(table, false, peer, "127.0.0.2:4747".parse().unwrap()), None);
        for gone in ["127.0.0.1:40001", "127.0.0.1:40002"] {
            assert_eq!(find(table, false, gone.parse().unwrap(), own), None, "{gone}");
        }
        assert_eq!(find("garbage\n0: x y 01 a b c d\n1:\n", false, peer, own), None);
    }
}
