// SPDX-License-Identifier: Apache-2.0

// The same as names.c, with Go's own resolver: what a static binary has.
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

func run(name, address, port string) error {
	found, err := net.LookupHost(name)
	if err != nil {
		return err
	}
	fmt.Println(found[0])
	for _, connects := range []bool{true, false} {
		var conn net.PacketConn
		to, err := net.ResolveUDPAddr("udp", net.JoinHostPort(address, port))
		if err != nil {
			return err
		}
		if connects {
			var dialled *net.UDPConn
			if dialled, err = net.DialUDP("udp", nil, to); err == nil {
				conn = dialled
				_, err = dialled.Write([]byte("question"))
			}
		} else if conn, err = net.ListenPacket("udp4", ":0"); err == nil {
			_, err = conn.WriteTo([]byte("question"), to)
		}
		if err != nil {
			return err
		}
		answer := make([]byte, 64)
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		size, _, err := conn.ReadFrom(answer)
		if err != nil {
			return err
		}
		fmt.Println(string(answer[:size]))
	}
	return nil
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
