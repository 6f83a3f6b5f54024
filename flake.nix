# SPDX-License-Identifier: Apache-2.0
#
#   nix develop     a shell with everything that the tests and the demo run
#   nix build       slimnet with both backends, the BPF objects built
#
# CI only parses this file (nix-instantiate --parse): there is no Nix store there.
{
  description = "slimnet: an overlay network for containers that works on connections, not packets";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forAllSystems = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});

      # One fact, one place: the versions are those of the distributions.
      project = directory: (nixpkgs.lib.importTOML (directory + "/pyproject.toml")).project;

      # ctypes looks for them by name; in a Nix store it has to be told where.
      libraries = pkgs: pkgs.lib.makeLibraryPath [ pkgs.libbpf pkgs.nftables ];

      build =
        pkgs:
        let
          python = pkgs.python3Packages;
          distribution =
            directory: arguments:
            python.buildPythonPackage (
              {
                pname = (project directory).name;
                inherit (project directory) version;
                src = self;
                pyproject = true;
                build-system = [ python.hatchling ];
                meta.platforms = systems;
              }
              // arguments
            );
        in
        rec {
          slimnet-overlay = distribution ./. {
            dependencies = with python; [
              attrs
              click
              netaddr
              dnspython
              pyroute2
              pyyaml
              rich
              stevedore
            ];
            pythonImportsCheck = [ "slimnet" ];
          };

          slimnet-overlay-ebpf = distribution ./backends/ebpf {
            # The whole tree is the source, since the objects include kernel/uapi.
            sourceRoot = "source/backends/ebpf";
            dependencies = [ slimnet-overlay ];
            nativeBuildInputs = [
              pkgs.gnumake
              pkgs.llvmPackages_19.clang-unwrapped
              pkgs.llvmPackages_19.llvm
            ];
            env = {
              CLANG = "clang";
              STRIP = "llvm-strip";
              # clang-unwrapped, for -target bpf, knows of no headers.
              ARCH_INCLUDE = "-idirafter ${pkgs.linuxHeaders}/include -isystem ${pkgs.libbpf}/include";
            };
            pythonImportsCheck = [ "slimnet_ebpf" ];
          };

          slimnet-overlay-noop = distribution ./backends/noop {
            sourceRoot = "source/backends/noop";
            dependencies = [ slimnet-overlay ];
            pythonImportsCheck = [ "slimnet_noop" ];
          };

          slimnet-overlay-etcd = distribution ./stores/etcd {
            sourceRoot = "source/stores/etcd";
            dependencies = [
              slimnet-overlay
              python.attrs
              python.grpcio
              python.protobuf
            ];
            pythonImportsCheck = [ "slimnet_etcd" ];
          };

          slimnet-overlay-kmod = distribution ./backends/kmod {
            sourceRoot = "source/backends/kmod";
            dependencies = [
              pkgs.python3.pkgs.pyroute2
              slimnet-overlay
            ];
            pythonImportsCheck = [ "slimnet_kmod" ];
          };

          slimnet-overlay-preload = distribution ./backends/preload {
            # As for ebpf: the programs include kernel/uapi.
            sourceRoot = "source/backends/preload";
            dependencies = [ slimnet-overlay ];
            nativeBuildInputs = [ pkgs.gnumake ];
            pythonImportsCheck = [ "slimnet_preload" ];
          };

          default =
            let
              environment = pkgs.python3.withPackages (_: [
                slimnet-overlay
                slimnet-overlay-ebpf
                slimnet-overlay-etcd
                slimnet-overlay-kmod
                slimnet-overlay-noop
                slimnet-overlay-preload
              ]);
            in
            pkgs.runCommand "slimnet" { nativeBuildInputs = [ pkgs.makeWrapper ]; } ''
              makeWrapper ${environment}/bin/slimnet $out/bin/slimnet \
                --prefix LD_LIBRARY_PATH : ${libraries pkgs}
            '';
        };
    in
    {
      packages = forAllSystems build;

      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [
            # Building
            bpftools
            gnumake
            libbpf
            linuxHeaders
            llvmPackages_19.clang-unwrapped
            llvmPackages_19.llvm
            sparse
            (python3.withPackages (
              ps: with ps; [
                attrs
                click
                hatchling
                hypothesis
                matplotlib
                mypy
                netaddr
                pyroute2
                pytest
                dnspython
                pyyaml
                rich
                stevedore
                tox
              ]
            ))
            ruff
            # What the tests and the demo run
            ethtool
            iperf3
            iproute2
            libmemcached
            liburing
            memcached
            nftables
            nginx
            postgresql
            redis
            shellcheck
            strace
            tcpdump
            wrk
          ];
          CLANG = "clang";
          STRIP = "llvm-strip";
          ARCH_INCLUDE = "-idirafter ${pkgs.linuxHeaders}/include -isystem ${pkgs.libbpf}/include";
          shellHook = ''
            export LD_LIBRARY_PATH=${libraries pkgs}''${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
            export PYTHONPATH=$PWD/src:$PWD/backends/ebpf/src:$PWD/backends/kmod/src:$PWD/backends/noop/src:$PWD/backends/preload/src:$PWD/stores/etcd/src''${PYTHONPATH:+:$PYTHONPATH}
          '';
        };
      });

      # Two machines that are one cluster, with etcd on the first, as in testbed/Vagrantfile.
      checks = forAllSystems (pkgs: {
        cluster =
          let
            slimnet = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
            machine =
              { config, ... }:
              {
                networking.firewall.enable = false;
                environment.systemPackages = [
                  slimnet
                  pkgs.netcat
                ];
                environment.etc."slimnet/slimnet.toml".text = ''
                  [underlay]
                  address = "${config.networking.primaryIPAddress}"
                '';
                systemd.services.slimnet-agent = {
                  serviceConfig = {
                    Type = "notify";
                    ExecStart = "${slimnet}/bin/slimnet agent --config /etc/slimnet/slimnet.toml";
                    StateDirectory = "slimnet";
                    RuntimeDirectory = "slimnet";
                    RuntimeDirectoryPreserve = "yes";
                  };
                };
              };
          in
          pkgs.testers.runNixOSTest {
            name = "slimnet-cluster";
            nodes.alpha =
              { config, ... }:
              {
                imports = [ machine ];
                services.etcd = rec {
                  enable = true;
                  listenClientUrls = [ "http://${config.networking.primaryIPAddress}:2379" ];
                  advertiseClientUrls = listenClientUrls;
                };
              };
            nodes.beta = machine;
            testScript = ''
              start_all()
              alpha.wait_for_unit("etcd.service")
              beta.wait_for_unit("multi-user.target")
              address = alpha.succeed("hostname --all-ip-addresses").split()[-1]
              joining = alpha.succeed(f"slimnet cluster init --store etcd://{address}:2379/slimnet")
              beta.succeed(joining.strip())
              for each in (alpha, beta):
                  each.succeed("systemctl start slimnet-agent")
              alpha.succeed("slimnet network create prod 10.77.0.0/24")
              alpha.succeed("slimnet run -d -n prod --name web -- nc -lk 80")
              beta.succeed("slimnet run -n prod --name client -- nc -zv web 80")
            '';
          };
      });

      formatter = forAllSystems (pkgs: pkgs.nixfmt-rfc-style);
    };
}
