// SPDX-License-Identifier: Apache-2.0

import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.DatagramChannel;

/** The same as names.c, on the JVM's datagram sockets, old and new. */
public class Names {
    public static void main(String[] args) throws Exception {
        InetSocketAddress to = new InetSocketAddress(args[1], Integer.parseInt(args[2]));
        byte[] question = "question".getBytes();
        System.out.println(InetAddress.getByName(args[0]).getHostAddress());
        try (DatagramSocket socket = new DatagramSocket()) {
            socket.setSoTimeout(5000);
            socket.setBroadcast(true);
            socket.send(new DatagramPacket(question, question.length, to));
            DatagramPacket answer = new DatagramPacket(new byte[64], 64);
            socket.receive(answer);
            System.out.println(new String(answer.getData(), 0, answer.getLength()));
        }
        try (DatagramChannel channel = DatagramChannel.open()) {
            channel.connect(to);
            channel.write(ByteBuffer.wrap(question));
            ByteBuffer answer = ByteBuffer.allocate(64);
            channel.read(answer);
            System.out.println(new String(answer.array(), 0, answer.position()));
        }
    }
}
