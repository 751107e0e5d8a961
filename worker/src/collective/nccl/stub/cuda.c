// A driver without a GPU, for tests: its memory is main memory, and each stream is a thread that does what is queued, in
// order. Only what the worker's NCCL asks of the driver.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NOT_READY 600

struct op {
  void (*run)(void*);
  void* with;
  struct op* next;
};

struct stream {
  pthread_mutex_t lock;
  pthread_cond_t more;
  struct op *first, *last;
};

struct event {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint64_t recorded, reached;
};

static void* follow(void* with) {
  struct stream* stream = with;
  for (;;) {
    pthread_mutex_lock(&stream->lock);
    while (!stream->first) pthread_cond_wait(&stream->more, &stream->lock);
    struct op* op = stream->first;
    stream->first = op->next;
    pthread_mutex_unlock(&stream->lock);
    op->run(op->with);
    free(op);
  }
  return NULL;
}

static struct stream* new_stream(void) {
  struct stream* stream = calloc(1, sizeof *stream);
  pthread_mutex_init(&stream->lock, NULL);
  pthread_cond_init(&stream->more, NULL);
  pthread_t thread;
  pthread_create(&thread, NULL, follow, stream);
  pthread_detach(thread);
  return stream;
}

static struct stream* default_stream;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void make_default(void) { default_stream = new_stream(); }

// Used by nccl.c too.
void stub_enqueue(struct stream* stream, void (*run)(void*), void* with) {
  if (!stream) {
    pthread_once(&once, make_default);
    stream = default_stream;
  }
  struct op* op = calloc(1, sizeof *op);
  op->run = run;
  op->with = with;
  pthread_mutex_lock(&stream->lock);
  if (stream->first) stream->last->next = op;
  else stream->first = op;
  stream->last = op;
  pthread_cond_signal(&stream->more);
  pthread_mutex_unlock(&stream->lock);
}

int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)0x1; return device == 0 ? 0 : 101; }
int cuCtxSetCurrent(void* context) { return context ? 0 : 201; }
int cuGetErrorString(int code, const char** words) { *words = code == 101 ? "invalid device ordinal" : "an error"; return 0; }

int cuStreamCreate(struct stream** out, unsigned flags) { *out = new_stream(); return flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(struct stream* stream) { (void)stream; return 0; }

int cuEventCreate(struct event** out, unsigned flags) {
  *out = calloc(1, sizeof **out);
  pthread_mutex_init(&(*out)->lock, NULL);
  pthread_cond_init(&(*out)->changed, NULL);
  return flags == 2 ? 0 : 1;
}
int cuEventDestroy_v2(struct event* event) { (void)event; return 0; }

struct mark {
  struct event* event;
  uint64_t number;
};

static struct mark* mark_of(struct event* event, uint64_t number) {
  struct mark* mark = malloc(sizeof *mark);
  mark->event = event;
  mark->number = number;
  return mark;
}

static void reach(void* with) {
  struct mark* mark = with;
  pthread_mutex_lock(&mark->event->lock);
  mark->event->reached = mark->number;
  pthread_cond_broadcast(&mark->event->changed);
  pthread_mutex_unlock(&mark->event->lock);
  free(mark);
}

static void await(void* with) {
  struct mark* mark = with;
  pthread_mutex_lock(&mark->event->lock);
  while (mark->event->reached < mark->number) pthread_cond_wait(&mark->event->changed, &mark->event->lock);
  pthread_mutex_unlock(&mark->event->lock);
  free(mark);
}

int cuEventRecord(struct event* event, struct stream* stream) {
  pthread_mutex_lock(&event->lock);
  uint64_t number = ++event->recorded;
  pthread_mutex_unlock(&event->lock);
  stub_enqueue(stream, reach, mark_of(event, number));
  return 0;
}

int cuEventQuery(struct event* event) {
  pthread_mutex_lock(&event->lock);
  int done = event->reached >= event->recorded;
  pthread_mutex_unlock(&event->lock);
  return done ? 0 : NOT_READY;
}

int cuStreamWaitEvent(struct stream* stream, struct event* event, unsigned flags) {
  pthread_mutex_lock(&event->lock);
  uint64_t number = event->recorded;
  pthread_mutex_unlock(&event->lock);
  stub_enqueue(stream, await, mark_of(event, number));
  return flags ? 1 : 0;
}

int cuMemAlloc_v2(void** out, size_t bytes) { return (*out = malloc(bytes)) ? 0 : 2; }
int cuMemFree_v2(void* memory) { free(memory); return 0; }

struct copy {
  void* to;
  void* from;
  size_t bytes;
  int owned;
};

static void copy(void* with) {
  struct copy* c = with;
  memcpy(c->to, c->from, c->bytes);
  if (c->owned) free(c->from);
  free(c);
}

// As from memory that is not pinned: read when this returns, copied later.
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, struct stream* stream) {
  struct copy* c = malloc(sizeof *c);
  *c = (struct copy){to, malloc(bytes), bytes, 1};
  memcpy(c->from, from, bytes);
  stub_enqueue(stream, copy, c);
  return 0;
}

int cuMemcpyDtoHAsync_v2(void* to, void* from, size_t bytes, struct stream* stream) {
  struct copy* c = malloc(sizeof *c);
  *c = (struct copy){to, from, bytes, 0};
  stub_enqueue(stream, copy, c);
  return 0;
}
