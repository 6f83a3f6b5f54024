// SPDX-License-Identifier: Apache-2.0

// The same client and server as plain.c, with Go's net package: a static
// binary, dual-stack listeners, non-blocking sockets, MPTCP where Go has it.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
)

func words(address net.Addr) string {
	tcp := address.(*net.TCPAddr)
	return fmt.Sprintf("%s %d", tcp.IP, tcp.Port)
}

func server(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			fmt.Fprintf(conn, "%s %s\n", words(conn.RemoteAddr()), words(conn.LocalAddr()))
			conn.Close()
		}()
	}
}

func client(address, port string, count int) error {
	for ; count > 0; count-- {
		conn, err := net.Dial("tcp", net.JoinHostPort(address, port))
		if err != nil {
			return err
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Printf("%s %s", words(conn.LocalAddr()), line)
		conn.Close()
	}
	return nil
}

func main() {
	var err error
	if os.Args[1] == "server" {
		err = server(os.Args[2])
	} else {
		count, _ := strconv.Atoi(os.Args[4])
		err = client(os.Args[2], os.Args[3], count)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
