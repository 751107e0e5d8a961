//! Hosts of their own on this machine: network namespaces on one bridge, whose links can be cut one way or another as
//! a cable, a switch or a firewall would. Needs root and iproute2.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Some hosts on one network. Removed at the end.
pub struct Net {
    name: String,
    hosts: u32,
    _alone: MutexGuard<'static, ()>,
}

/// One network at a time: tests that measure silence want the machine to themselves.
static ALONE: Mutex<()> = Mutex::new(());

/// The network's prefix; a namespace sees no other, so it collides with nothing.
const PREFIX: &str = "10.77.0";

/// A hardware address that nobody has: what is sent there is gone without a word.
const NOBODY: &str = "02:00:00:00:00:99";

impl Net {
    /// Makes `hosts` hosts; none where this process may not.
    pub fn new(hosts: u32) -> Option<Self> {
        // A test that failed with it has broken nothing of it.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let net = Self { name: format!("rl{}", std::process::id()), hosts, _alone: alone };
        let made = Command::new("ip").args(["netns", "add", &net.switch()]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            return None;
        }
        net.ip(&["-n", &net.switch(), "link", "add", "name", "bridge0", "type", "bridge"]);
        net.ip(&["-n", &net.switch(), "link", "set", "bridge0", "up"]);
        for host in 0..hosts {
            let (namespace, port, switch) = (net.host(host), net.port(host), net.switch());
            net.ip(&["netns", "add", &namespace]);
            net.ip(&[
                "-n", &switch, "link", "add", "name", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &namespace,
            ]);
            net.ip(&["-n", &switch, "link", "set", &port, "master", "bridge0", "up"]);
            net.ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            net.ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
            net.ip(&["-n", &namespace, "addr", "add", &format!("{}/24", Self::address(host)), "dev", "eth0"]);
        }
        Some(net)
    }

    /// The address of a host.
    pub fn address(host: u32) -> String {
        format!("{PREFIX}.{}", host + 1)
    }

    /// `command` on a host.
    pub fn on(&self, host: u32, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.host(host)]).arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        inside.stdin(std::process::Stdio::null());
        inside
    }

    /// Pulls a host's cable, or plugs it in again: nobody is told.
    pub fn plug(&self, host: u32, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        self.ip(&["-n", &self.switch(), "link", "set", &self.port(host), state]);
    }

    /// Loses all that two hosts send to each other, or stops doing so; they reach all others.
    pub fn cut(&self, one: u32, other: u32, cut: bool) {
        for (from, to) in [(one, other), (other, one)] {
            let (namespace, address) = (self.host(from), Self::address(to));
            let entry = ["-n", &namespace, "neigh", "replace", &address, "lladdr", NOBODY, "dev", "eth0"];
            match cut {
                true => self.ip(&[&entry[..], &["nud", "permanent"]].concat()),
                false => self.ip(&["-n", &namespace, "neigh", "del", &address, "dev", "eth0"]),
            }
        }
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.name)
    }

    fn host(&self, host: u32) -> String {
        format!("{}-{host}", self.name)
    }

    fn port(&self, host: u32) -> String {
        format!("p{host}")
    }

    fn ip(&self, args: &[&str]) {
        let output = Command::new("ip").args(args).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {}: {words}", args.join(" "));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in (0..self.hosts).map(|host| self.host(host)).chain([self.switch()]) {
            // What is left of a test that has failed goes with it as far as it can.
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
}
