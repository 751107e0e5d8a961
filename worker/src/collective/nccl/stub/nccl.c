// NCCL without GPUs, for tests: ranks of one host meet in a file that their id names. Sums, copies and gathers are done by
// the stream of cuda.c that they are queued on. Environment of a rank:
//
//   STUB_NCCL_VERSION=N     the version that it says it is
//   STUB_NCCL_FAIL_AFTER=N  after so many operations it says that a remote rank has failed
//   STUB_NCCL_SLOW_ABORT=1  giving up takes seconds
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, IN_PROGRESS };
enum { MOST = 8, SLOT = 1 << 20 };

void stub_enqueue(void* stream, void (*run)(void*), void* with);

struct shared {
  atomic_int arrived;
  atomic_int waiting, round;
  uint8_t slots[MOST][SLOT];
};

struct comm {
  struct shared* shared;
  int rank, world;
  atomic_int aborted, operations;
  atomic_llong busy_until;
};

typedef struct { char internal[128]; } unique_id;
struct config { size_t size; unsigned magic, version; int blocking; };

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int setting(const char* name) {
  const char* text = getenv(name);
  return text ? atoi(text) : 0;
}

int ncclGetVersion(int* version) {
  *version = setting("STUB_NCCL_VERSION") ? setting("STUB_NCCL_VERSION") : 23003;
  return SUCCESS;
}

const char* ncclGetErrorString(int code) { return code == REMOTE_ERROR ? "remote process exited" : "an error of NCCL"; }
const char* ncclGetLastError(struct comm* comm) { return comm ? "of a communicator" : ""; }

int ncclGetUniqueId(unique_id* id) {
  snprintf(id->internal, sizeof id->internal, "%s/relabel-nccl-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  int file = mkstemp(id->internal);
  if (file < 0 || ftruncate(file, sizeof(struct shared))) return SYSTEM_ERROR;
  close(file);
  return SUCCESS;
}

int ncclCommInitRankConfig(struct comm** out, int world, unique_id id, int rank, const struct config* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0 || config->size < sizeof *config || config->version < 21400)
    return INVALID_ARGUMENT;
  int file = open(id.internal, O_RDWR);
  if (file < 0) return SYSTEM_ERROR;
  struct comm* comm = calloc(1, sizeof *comm);
  comm->shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  comm->rank = rank;
  comm->world = world;
  // The last to come takes the name away.
  if (atomic_fetch_add(&comm->shared->arrived, 1) + 1 == world) unlink(id.internal);
  *out = comm;
  return IN_PROGRESS;
}

int ncclCommGetAsyncError(struct comm* comm, int* state) {
  int failing = setting("STUB_NCCL_FAIL_AFTER");
  if (failing && atomic_load(&comm->operations) >= failing) *state = REMOTE_ERROR;
  else if (atomic_load(&comm->shared->arrived) < comm->world || now() < atomic_load(&comm->busy_until)) *state = IN_PROGRESS;
  else *state = SUCCESS;
  return SUCCESS;
}

int ncclCommFinalize(struct comm* comm) {
  atomic_store(&comm->busy_until, now() + 2000);
  return IN_PROGRESS;
}

int ncclCommAbort(struct comm* comm) {
  atomic_store(&comm->aborted, 1);
  if (setting("STUB_NCCL_SLOW_ABORT")) sleep(5);
  return SUCCESS;
}

// Returns 0 once all ranks have come, 1 where the communicator was given up.
static int meet(struct comm* comm) {
  struct shared* shared = comm->shared;
  int round = atomic_load(&shared->round);
  if (atomic_fetch_add(&shared->waiting, 1) + 1 == comm->world) {
    atomic_store(&shared->waiting, 0);
    atomic_fetch_add(&shared->round, 1);
    return 0;
  }
  while (atomic_load(&shared->round) == round) {
    if (atomic_load(&comm->aborted)) return 1;
    usleep(20);
  }
  return 0;
}

enum what { SUM, SUM_BF16, COPY, GATHER };

static float widen(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint16_t rounded(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct work {
  struct comm* comm;
  enum what what;
  const uint8_t* from;
  uint8_t* to;
  size_t bytes;
  int root;
};

static void piece(struct work* w, size_t at, size_t bytes) {
  struct shared* shared = w->comm->shared;
  memcpy(shared->slots[w->comm->rank], w->from + at, bytes);
  if (meet(w->comm)) return;
  if (w->what == SUM) {
    float* sums = (float*)(w->to + at);
    for (size_t i = 0; i < bytes / sizeof(float); ++i) {
      float sum = 0;
      for (int rank = 0; rank < w->comm->world; ++rank) sum += ((float*)shared->slots[rank])[i];
      sums[i] = sum;
    }
  } else if (w->what == SUM_BF16) {
    uint16_t* sums = (uint16_t*)(w->to + at);
    for (size_t i = 0; i < bytes / sizeof(uint16_t); ++i) {
      float sum = 0;
      for (int rank = 0; rank < w->comm->world; ++rank) sum += widen(((uint16_t*)shared->slots[rank])[i]);
      sums[i] = rounded(sum);
    }
  } else if (w->what == COPY) {
    memcpy(w->to + at, shared->slots[w->root], bytes);
  } else {
    for (int rank = 0; rank < w->comm->world; ++rank) memcpy(w->to + rank * w->bytes + at, shared->slots[rank], bytes);
  }
  meet(w->comm);
}

static void run(void* with) {
  struct work* w = with;
  for (size_t at = 0; at < w->bytes && !atomic_load(&w->comm->aborted); at += SLOT)
    piece(w, at, w->bytes - at < SLOT ? w->bytes - at : SLOT);
  free(w);
}

static int queue(struct comm* comm, enum what what, const void* from, void* to, size_t bytes, int root, void* stream) {
  int state;
  ncclCommGetAsyncError(comm, &state);
  // What was asked before has to have been taken on.
  if (state != SUCCESS) return INVALID_USAGE;
  struct work* w = malloc(sizeof *w);
  *w = (struct work){comm, what, from, to, bytes, root};
  atomic_fetch_add(&comm->operations, 1);
  atomic_store(&comm->busy_until, now() + 1000);
  stub_enqueue(stream, run, w);
  return IN_PROGRESS;
}

int ncclAllReduce(const void* from, void* to, size_t count, int kind, int op, struct comm* comm, void* stream) {
  if ((kind != 7 && kind != 9) || op != 0) return INVALID_ARGUMENT;
  if (kind == 9) return queue(comm, SUM_BF16, from, to, count * sizeof(uint16_t), 0, stream);
  return queue(comm, SUM, from, to, count * sizeof(float), 0, stream);
}

int ncclBroadcast(const void* from, void* to, size_t count, int kind, int root, struct comm* comm, void* stream) {
  if (kind != 1 || root >= comm->world) return INVALID_ARGUMENT;
  return queue(comm, COPY, from, to, count, root, stream);
}

int ncclAllGather(const void* from, void* to, size_t count, int kind, struct comm* comm, void* stream) {
  if (kind != 1) return INVALID_ARGUMENT;
  return queue(comm, GATHER, from, to, count, 0, stream);
}
