// Command vault-plugin-secrets-nomad is a Vault secrets engine that gives out
// Nomad ACL tokens under leases. Vault starts it; started by hand, it can only
// tell its version.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/plugin"

	"vault-plugin-secrets-nomad/backend"
)

func main() {
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *version {
		fmt.Println(backend.Version)
		return
	}
	// One process serves all mounts of this version. Vault reads the log from
	// standard error, and keeps what its own level lets through.
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: os.Stderr, JSONFormat: true})
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: backend.Factory, Logger: logger}); err != nil {
		logger.Error("the plugin cannot run", "error", err)
		os.Exit(1)
	}
}
