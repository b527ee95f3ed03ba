// Package faultstorage is Vault's storage in memory, which counts its calls,
// fails the n-th of them, and can be held up. It is for unit tests.
package faultstorage

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

// ErrInjected is what a failed call returns.
var ErrInjected = errors.New("storage failed on purpose")

// Storage is safe for concurrent use.
type Storage struct {
	memory logical.InmemStorage

	mu     sync.Mutex
	calls  int
	failAt int
	late   bool
	hold   func(operation, key string)
}

// FailAt makes the n-th call from now fail; 0 lets all succeed. With late, the
// call is carried out before it fails, as when an answer is lost.
func (s *Storage) FailAt(n int, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.failAt, s.late = 0, n, late
}

// Calls counts the calls since the last FailAt.
func (s *Storage) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Hold has each call, once it is carried out, pass through hold before it
// returns. Nil ends that.
func (s *Storage) Hold(hold func(operation, key string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = hold
}

func (s *Storage) call(operation, key string, carryOut func() error) error {
	s.mu.Lock()
	s.calls++
	fail, late, hold := s.calls == s.failAt, s.late, s.hold
	s.mu.Unlock()
	if fail && !late {
		return ErrInjected
	}
	err := carryOut()
	if hold != nil {
		hold(operation, key)
	}
	if fail {
		return ErrInjected
	}
	return err
}

// List is logical.Storage's.
func (s *Storage) List(ctx context.Context, prefix string) (keys []string, err error) {
	err = s.call("list", prefix, func() (err error) { keys, err = s.memory.List(ctx, prefix); return err })
	return keys, err
}

// Get is logical.Storage's.
func (s *Storage) Get(ctx context.Context, key string) (entry *logical.StorageEntry, err error) {
	err = s.call("get", key, func() (err error) { entry, err = s.memory.Get(ctx, key); return err })
	return entry, err
}

// Put is logical.Storage's.
func (s *Storage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	return s.call("put", entry.Key, func() error { return s.memory.Put(ctx, entry) })
}

// Delete is logical.Storage's.
func (s *Storage) Delete(ctx context.Context, key string) error {
	return s.call("delete", key, func() error { return s.memory.Delete(ctx, key) })
}
