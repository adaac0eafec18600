//go:build tools

// Package tools names what scripts/e2e-tools builds from this module, so that go.sum holds all of it.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
