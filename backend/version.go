package backend

// Version is what the plugin answers to -version and reports as its running
// version. Vault refuses to run a plugin whose report is not exactly the
// version that it was registered with.
const Version = "v0.1.0"
