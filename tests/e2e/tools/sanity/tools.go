//go:build tools

// Package tools names what scripts/e2e-tools builds from this module, so that go.sum holds all of it.
package tools

import _ "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
