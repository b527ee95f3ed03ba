package paths

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/hashicorp/vault/sdk/logical"
)

// settings caches decoded storage entries, so that a read of creds/ needs no
// storage call. What it hands out is shared: nobody changes it.
//
// An entry that was read from storage before a write ended is never kept after
// it: every drop counts, and keep refuses what was read before the last one.
type settings struct {
	mu    sync.RWMutex
	kept  map[string]any
	drops uint64
}

// load gives the decoded entry of a key, nil when there is none, from the cache
// where it is there.
func load[T any](ctx context.Context, s *settings, storage logical.Storage, key string) (*T, error) {
	value, found, drops := s.lookup(key)
	if found {
		return value.(*T), nil
	}
	entry, err := read[T](ctx, storage, key)
	if err != nil {
		return nil, err
	}
	// That a role does not exist is not kept: callers choose the name.
	if entry != nil || !strings.HasPrefix(key, rolePrefix) {
		s.keep(key, entry, drops)
	}
	return entry, nil
}

// read gives the decoded entry of a key from storage, nil when there is none.
func read[T any](ctx context.Context, storage logical.Storage, key string) (*T, error) {
	entry, err := storage.Get(ctx, key)
	if err != nil {
		return nil, storageError("read "+key, err)
	}
	if entry == nil {
		return nil, nil
	}
	decoded := new(T)
	if err := entry.DecodeJSON(decoded); err != nil {
		// Not the decoder's words: they may quote the entry, and it may hold a
		// secret.
		return nil, fmt.Errorf("the stored %s cannot be decoded; write it again, or delete it", key)
	}
	return decoded, nil
}

// write stores an entry. Also after an error nothing of it stays cached, since
// a failed write may have taken place.
func (s *settings) write(ctx context.Context, storage logical.Storage, key string, value any) error {
	entry, err := logical.StorageEntryJSON(key, value)
	if err != nil {
		return fmt.Errorf("cannot encode %s", key)
	}
	defer s.drop(key)
	if err := storage.Put(ctx, entry); err != nil {
		return storageError("write "+key, err)
	}
	return nil
}

// remove deletes an entry, and is content when there is none.
func (s *settings) remove(ctx context.Context, storage logical.Storage, key string) error {
	defer s.drop(key)
	if err := storage.Delete(ctx, key); err != nil {
		return storageError("delete "+key, err)
	}
	return nil
}

func (s *settings) lookup(key string) (value any, found bool, drops uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	value, found = s.kept[key]
	return value, found, s.drops
}

func (s *settings) keep(key string, value any, drops uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drops != drops {
		return
	}
	if s.kept == nil {
		s.kept = map[string]any{}
	}
	s.kept[key] = value
}

func (s *settings) drop(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	delete(s.kept, key)
}

// storageError says what was being done. Vault's own sentinels are passed on as
// they are: wrapped they do not survive the way back to Vault, which forwards a
// write that met ErrReadOnly to the active node.
func storageError(doing string, err error) error {
	for _, sentinel := range []error{logical.ErrReadOnly, logical.ErrSetupReadOnly, context.Canceled} {
		if errors.Is(err, sentinel) {
			return sentinel
		}
	}
	return fmt.Errorf("cannot %s in Vault's storage: %w", doing, err)
}
