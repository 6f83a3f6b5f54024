// SPDX-License-Identifier: Apache-2.0

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketAddress;

/** The same client and server as plain.c, on the JVM's dual-stack sockets. */
public class Plain {
    static String words(SocketAddress address) {
        InetSocketAddress inet = (InetSocketAddress) address;
        return inet.getAddress().getHostAddress() + " " + inet.getPort();
    }

    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(args[args[0].equals("server") ? 1 : 2]);
        if (args[0].equals("server")) {
            ServerSocket listener = new ServerSocket(port);
            System.out.println("ready");
            while (true) {
                try (Socket socket = listener.accept()) {
                    String line = words(socket.getRemoteSocketAddress()) + " "
                        + words(socket.getLocalSocketAddress()) + "\n";
                    socket.getOutputStream().write(line.getBytes());
                }
            }
        }
        for (int count = Integer.parseInt(args[3]); count > 0; count--) {
            try (Socket socket = new Socket(args[1], port)) {
                BufferedReader reader =
                    new BufferedReader(new InputStreamReader(socket.getInputStream()));
                System.out.println(words(socket.getLocalSocketAddress()) + " " + reader.readLine());
            }
        }
    }
}
