"""The texts of the page in Russian, by their English text."""

from __future__ import annotations

RUSSIAN = {
    # the page
    "Chat": "Чат",
    "Live": "Камера",
    "Inside": "Внутри",
    "Compare": "Сравнение",
    "Models": "Модели",
    "with {model}, on this machine": "с моделью {model}, на этом компьютере",
    "The demo has ended": "Демонстрация завершена",
    "Nothing answers at this address any more. Start edgevlm demo again, then go on here.": (
        "По этому адресу больше никто не отвечает. Запустите edgevlm demo снова и продолжайте здесь."
    ),
    "Still nothing answers. Start edgevlm demo again on the same port.": (
        "Ответа всё ещё нет. Запустите edgevlm demo снова на том же порту."
    ),
    "Try again": "Попробовать снова",
    "Picture": "Изображение",
    # names that Gradio gives in English only
    "Close": "Закрыть",
    "Copy message": "Копировать сообщение",
    "Download": "Скачать",
    "Empty value": "Пусто",
    "Exit fullscreen mode": "Выйти из полноэкранного режима",
    "Fullscreen": "Во весь экран",
    "Multimedia input field": "Поле вопроса",
    "Remove file": "Убрать файл",
    "Reset to default value": "Вернуть значение по умолчанию",
    "Scroll down": "Прокрутить вниз",
    "Stop": "Остановить",
    "Submit": "Отправить",
    "Upload a file": "Загрузить файл",
    "Uploaded files": "Загруженные файлы",
    "Uploading": "Загрузка",
    "chatbot conversation": "Разговор",
    "clear input": "Очистить",
    "{name}: number": "{name}: число",
    "{name}: slider": "{name}: ползунок",
    "Example: {name}": "Пример: {name}",
    "Question: {name}": "Вопрос: {name}",
    "Answer: {name}": "Ответ: {name}",
    # Chat
    "Model": "Модель",
    "Conversation": "Разговор",
    "Add a picture and ask about it, or take an example": (
        "Добавьте картинку и задайте вопрос или возьмите пример"
    ),
    "What is in the picture?": "Что на картинке?",
    "Where is the key?": "Где ключ?",
    "What changed?": "Что изменилось?",
    "What color is it?": "Какого это цвета?",
    "Ask about a picture": "Спросите о картинке",
    "Edit the last question": "Изменить последний вопрос",
    "Copy the conversation": "Скопировать разговор",
    "Settings": "Настройки",
    "Temperature": "Температура",
    "0 takes the most likely token each time": "0: каждый раз самый вероятный токен",
    "Longest answer": "Наибольшая длина ответа",
    "tokens": "в токенах",
    "Detail of pictures": "Подробность картинок",
    "for models that split pictures into tiles": "для моделей, которые делят картинки на части",
    "the model's usual": "обычная для модели",
    "low": "низкая",
    "high": "высокая",
    "automatic": "автоматическая",
    "System prompt": "Системная инструкция",
    "none": "нет",
    "Keep how likely each token was, for Inside": (
        "Сохранять вероятность каждого токена для вкладки «Внутри»"
    ),
    "without it, answers that repeat come faster": "без этого повторные ответы приходят быстрее",
    "Webcam": "Веб-камера",
    "There is no question to answer again.": "Нет вопроса, на который можно ответить ещё раз.",
    "There is no question yet; write one.": "Вопроса ещё нет; напишите его.",
    "The question is empty. Write one, or add a picture.": (
        "Вопрос пуст. Напишите его или добавьте картинку."
    ),
    "A picture did not get to the server. Add it again.": (
        "Картинка не дошла до сервера. Добавьте её ещё раз."
    ),
    "{name} has {count} frames or pages. The model sees the first one.": (
        "Кадров или страниц в {name}: {count}. Модель видит только первый кадр или первую страницу."
    ),
    "{name} is a folder. Open it, and drop the pictures in it.": (
        "{name} — это папка. Откройте её и перетащите картинки из неё."
    ),
    "Nothing was said yet; there is nothing to copy.": "Ещё ничего не сказано: копировать нечего.",
    "Loading {model}: {percent}": "Загрузка {model}: {percent}",
    "stopped": "остановлено",
    "First token: {first} ms · tokens: {count}": "Первый токен: {first} мс · токенов: {count}",
    "First token: {first} ms · {speed} tokens per second · tokens: {count}": (
        "Первый токен: {first} мс · токенов в секунду: {speed} · токенов: {count}"
    ),
    "cut off at the length in the settings": "оборвано на длине из настроек",
    "the boxes are on the last picture": "рамки относятся к последней картинке",
    "Describe": "Описать",
    "Find": "Найти",
    "Point": "Указать",
    "Count": "Сосчитать",
    "Read": "Прочитать",
    "Describe the picture.": "Опиши картинку.",
    "thing": "предмет",
    "Send (Enter; Shift+Enter breaks the line)": "Отправить (Enter; Shift+Enter — новая строка)",
    "Stop (Escape)": "Остановить (Escape)",
    "Add pictures; they can be pasted and dropped, too": (
        "Добавить картинки; их можно также вставить или перетащить"
    ),
    "Remove this picture": "Убрать эту картинку",
    "Copy": "Скопировать",
    "Copied": "Скопировано",
    "Enlarge the picture": "Увеличить картинку",
    "You": "Вы",
    # conversations and settings
    "New conversation": "Новый разговор",
    "Conversations": "Разговоры",
    "Search": "Поиск",
    "Search in titles and texts": "Поиск в названиях и текстах",
    "Save as a file": "Сохранить в файл",
    "Save as Markdown": "Сохранить как Markdown",
    "Open a file": "Открыть файл",
    "This conversation went on in another tab. What was said here is kept as a copy.": (
        "Этот разговор продолжили в другой вкладке. Сказанное здесь сохранено отдельной копией."
    ),
    "{count} conversations are kept at most; the oldest is gone: {title}": (
        "Хранится не больше {count} разговоров; удалён самый старый: {title}"
    ),
    "No conversation has this in its title or text.": (
        "Ни в названиях, ни в текстах разговоров этого нет."
    ),
    "Nothing is kept yet. Ask something, and it will be.": (
        "Пока ничего не сохранено. Задайте вопрос, и разговор появится здесь."
    ),
    "without words": "без слов",
    "Take back": "Вернуть",
    "deleted": "удалён",
    "Rename": "Переименовать",
    "Delete": "Удалить",
    "The newest {count} are kept until edgevlm demo ends. Save those as files that you want for longer.": (
        "Последние {count} разговоров хранятся, пока работает edgevlm demo. "
        "Нужные надолго сохраните в файл."
    ),
    "The conversation is empty; there is nothing to save.": ("Разговор пуст; сохранять нечего."),
    "Reset the settings": "Сбросить настройки",
    "The model {model} that was chosen here is gone or broken; {first} answers now.": (
        "Выбранной здесь модели {model} больше нет или она повреждена; теперь отвечает {first}."
    ),
    # the camera
    "Start": "Запустить",
    "Camera": "Камера",
    "camera {number}": "камера {number}",
    "what the camera shows": "изображение с камеры",
    "Take a picture": "Сделать снимок",
    "The picture is in the question box.": "Снимок добавлен к вопросу.",
    "The camera is off. What it shows stays on this machine.": (
        "Камера выключена. Её изображение не покидает этот компьютер."
    ),
    "Waiting for the camera. Allow it if the browser asks.": (
        "Включаем камеру. Если браузер спросит, разрешите доступ."
    ),
    "The camera is on.": "Камера включена.",
    "The camera is off while it is out of sight. It goes on when you come back.": (
        "Пока вкладка не видна, камера выключена. Она включится, когда вы вернётесь."
    ),
    "The browser does not let this page use the camera. Allow the camera beside the address of "
    "the page, or in the settings of the browser or the system. Then press Start.": (
        "Браузер не даёт странице доступ к камере. Разрешите его рядом с адресом страницы либо в "
        "настройках браузера или системы и нажмите «Запустить»."
    ),
    "There is no camera. Connect one, then press Start.": (
        "Камера не найдена. Подключите её и нажмите «Запустить»."
    ),
    "The camera cannot be read. Another program may use it: close that program, then press Start.": (
        "Не удаётся получить изображение с камеры. Возможно, она занята другой программой: закройте её и "
        "нажмите «Запустить»."
    ),
    "The camera was unplugged, or its permission was taken back. Press Start to try again.": (
        "Камера отключена, или доступ к ней отозван. Чтобы повторить, нажмите «Запустить»."
    ),
    "The browser gives no camera to this address. Open the page on this machine, at 127.0.0.1.": (
        "Браузер не даёт доступ к камере по этому адресу. Откройте страницу на этом компьютере, "
        "по адресу 127.0.0.1."
    ),
    "The camera does not start: {error}. Press Start to try again.": (
        "Камера не включается: {error}. Чтобы повторить, нажмите «Запустить»."
    ),
    # Live
    "Question": "Вопрос",
    "Choices (optional)": "Варианты ответа (необязательно)",
    "for example: red, green, blue": "например: red, green, blue",
    "Separate them with commas. The model then says how likely each of them is.": (
        "Перечислите через запятую. Модель оценит, насколько вероятен каждый."
    ),
    "Look only when the picture changes": "Смотреть, только когда изображение меняется",
    "The question is empty. Write one.": "Вопрос пуст. Напишите его.",
    "“{choice}” is there twice among the choices. Remove one.": (
        "Вариант «{choice}» указан дважды. Удалите один."
    ),
    "One choice is none. Add others after a comma, or leave the field empty.": (
        "Один вариант — не выбор. Добавьте другие через запятую или оставьте поле пустым."
    ),
    "There are {count} choices, more than {limit}. Remove some.": (
        "Вариантов слишком много: {count}, можно не больше {limit}. Удалите лишние."
    ),
    "The frame has more than {limit} MB. Choose a lower resolution.": (
        "Кадр больше {limit} МБ. Уменьшите разрешение."
    ),
    "The frame is not a JPEG picture.": "Кадр не в формате JPEG.",
    "The frame has {width} × {height} pixels, more than {limit} million. "
    "Choose a lower resolution.": (
        "В кадре {width} × {height} пикселей, а можно не больше {limit} миллионов. Уменьшите разрешение."
    ),
    "Answers appear here once the camera is on.": "Здесь появятся ответы, когда камера будет включена.",
    "Loading the model {model} …": "Загружается модель {model} …",
    "The frame of this answer is {seconds} s old.": "Кадру этого ответа {seconds} с.",
    "It took {milliseconds} ms.": "Ответ занял {milliseconds} мс.",
    "The picture has not changed for {seconds} s.": "Изображение не меняется уже {seconds} с.",
    "The frame of this answer was taken at {time}.": "Кадр этого ответа снят в {time}.",
    "edgevlm does not answer. See whether it still runs, reload the page, then press Start.": (
        "edgevlm не отвечает. Проверьте, что он запущен, обновите страницу и нажмите «Запустить»."
    ),
    "Answers": "Ответы",
    "No answers yet. The last {limit} different ones are listed here.": (
        "Ответов пока нет. Здесь появятся последние {limit} разных."
    ),
    "Save the log": "Сохранить журнал",
    "{count} times": "повторов: {count}",
    "Ask about this frame": "Спросить об этом кадре",
    # Inside
    "Nothing was answered in this browser yet. Ask something under Chat, then come back.": (
        "В этом браузере ещё ничего не отвечали. Задайте вопрос на вкладке «Чат» и вернитесь сюда."
    ),
    "Show the last answer": "Показать последний ответ",
    "Where time went": "На что ушло время",
    "What it cost": "Чего это стоило",
    "How likely each token was": "Вероятность каждого токена",
    "Point at a token, or tap it, to see what else might have come.": (
        "Наведите указатель на токен или коснитесь его, чтобы увидеть другие возможные."
    ),
    "What the model saw": "Что видела модель",
    "There was no picture.": "Картинки не было.",
    "Parts of the prompt": "Части запроса",
    "The prompt": "Запрос",
    "A frame stands for a picture, with its number of tokens.": (
        "Рамка стоит на месте картинки, в ней число токенов."
    ),
    "The answer was stopped before its end.": "Ответ остановили до конца.",
    "The answer was stopped before its first token.": "Ответ остановили до первого токена.",
    "Not kept. The settings under Chat can turn it on for the next answer.": (
        "Не сохранено. Для следующего ответа это можно включить в настройках чата."
    ),
    "The prompt cannot be shown: {why}": "Запрос нельзя показать: {why}",
    "Where the answer points": "На что указывает ответ",
    "answered by {model}": "отвечала модель {model}",
    "no answer": "нет ответа",
    "first token": "первый токен",
    "whole answer": "весь ответ",
    "tokens per second": "токенов в секунду",
    "tokens of the answer": "токенов в ответе",
    "tokens of the prompt": "токенов в запросе",
    "tiles of pictures": "частей картинок",
    "{count}, {drafted} of them guessed ahead": "{count}, из них угадано заранее: {drafted}",
    "{count}, {cached} of them known from before": "{count}, из них уже известно: {cached}",
    "{encoded} encoded, {cached} known from before": "обработано: {encoded}, уже известно: {cached}",
    "most memory so far, all models together": "наибольшая память, все модели вместе",
    "loading the model": "загрузка модели",
    "part": "часть",
    "all": "всего",
    "wait for the model": "ожидание модели",
    "prepare pictures": "подготовка картинок",
    "encode pictures": "обработка картинок",
    "read the prompt": "чтение запроса",
    "write the answer": "написание ответа",
    "Most likely here:": "Вероятнее всего здесь:",
    "picture {number}, whole": "картинка {number}, целиком",
    "picture {number}, row {row}, column {column}": "картинка {number}, ряд {row}, столбец {column}",
    "{count} ms": "{count} мс",
    "{count} MB": "{count} МБ",
    "unknown": "неизвестно",
    "number of tokens": "число токенов",
    # Compare
    "Ask both": "Спросить обе",
    "Left model": "Модель слева",
    "Right model": "Модель справа",
    "More settings": "Другие настройки",
    "Choose a model on both sides.": "Выберите модель с обеих сторон.",
    "waits for the left side": "ждёт, пока ответят слева",
    "loading the model …": "модель загружается …",
    "answering …": "отвечает …",
    "could not answer": "ответить не удалось",
    "left": "слева",
    "right": "справа",
    "temperature": "температура",
    "detail of pictures": "подробность картинок",
    "system prompt": "системная инструкция",
    "tokens known from before": "уже известных токенов",
    "size on disk": "размер на диске",
    "memory for loading it": "память на загрузку",
    # Models
    "Models that came with edgevlm, and those that edgevlm export made on this machine. "
    "What you load here is used in this browser alone.": (
        "Модели из поставки edgevlm и те, что сделаны на этом компьютере командой edgevlm export. "
        "То, что вы загрузите здесь, используется только в этом браузере."
    ),
    "Load and use": "Загрузить и использовать",
    "Refresh the list": "Обновить список",
    "There is no model that could be loaded.": "Нет модели, которую можно было бы загрузить.",
    "Loading {model}: {step} …": "Загрузка {model}: {step} …",
    "looking for it": "поиск модели",
    "checking its files": "проверка файлов",
    "reading its files": "чтение файлов",
    "{model} cannot be loaded, so {chosen} stays in use. {why}": (
        "Модель {model} не загружается, поэтому по-прежнему используется {chosen}. {why}"
    ),
    "model": "модель",
    "size": "размер",
    "state": "состояние",
    "in use": "используется",
    "loaded": "загружена",
    "ready": "готова",
    "being checked": "проверяется",
    "broken": "повреждена",
    "vision {vision}; decoder {decoder}; context {context} tokens": (
        "зрение {vision}; декодер {decoder}; контекст {context} токенов"
    ),
    "Export it again, or delete its folder: {folder}": (
        "Экспортируйте её заново или удалите её папку: {folder}"
    ),
    "runs on": "работает на",
    "made from": "сделана из",
    "license": "лицензия",
    "folder": "папка",
    "This model sees drawings only; on photographs it guesses.": (
        "Эта модель видит только рисунки, на фотографиях она гадает."
    ),
    "The tab Models tells how to get a model for photographs.": (
        "Как получить модель для фотографий, сказано на вкладке «Модели»."
    ),
    "To get a model for photographs, run this in the folder of edgevlm's sources. It downloads "
    "the model, needs no network after that, and puts it into this list:": (
        "Чтобы получить модель для фотографий, выполните это в папке с исходным кодом edgevlm. "
        "Модель загрузится, дальше сеть не нужна, и она появится в этом списке:"
    ),
}
